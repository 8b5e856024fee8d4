"""`run_config.yaml` held against Megatron-Bridge itself, where it has been put on the path.

It is no dependency of ours: `pip install --no-deps --target DIR megatron-bridge==0.6.2 omegaconf
antlr4-python3-runtime==4.9.3 einops rich`, then PYTHONPATH=DIR.
"""

import json
from pathlib import Path

import pytest

from tests.families.case import CASES
from tests.families.workshop import Workshop
from tests.megatron import bridge
from tests.megatron.ranks import Ranks
from tests.trainer_runs import run_of
from worker.jobs.setup_spec import Parallelism
from worker.mapping.family import megatron_values
from worker.mapping.model_config import build, to_json_dict
from worker.setups.run_config import run_config
from worker.setups.run_values import run_values

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not bridge.is_here(), reason="Megatron-Bridge is not on the path")]


def test_bridge_reads_the_config_that_ferry_built(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, tmp_path: Path
) -> None:
    texts: dict[str, str] = {}
    ours: dict[str, dict[str, object]] = {}
    for case in CASES:
        run = run_of(
            json.loads((workshop.source(case) / "config.json").read_text()),
            Path("/run"),
            parallelism=Parallelism(cp_size=2),
            recompute="full",
        )
        said = megatron_values(run.model.family, run_values(run), "test")
        if said.kind == "variant":
            continue
        texts[case.name] = run_config(run).decode()
        config = to_json_dict(build(said))
        inner = config["transformer"]
        assert isinstance(inner, dict)
        flat = {**config, **inner}
        ours[case.name] = {name: flat[name] for name in (*said.model, *said.transformer)}

    [theirs] = megatron_with_transformer_engine.run(
        "tests.megatron.bridge:models_of", texts=texts, folder=str(tmp_path)
    )

    assert len(texts) > 40
    for name, values in ours.items():
        assert {key: theirs[name].get(key) for key in values} == values, name
