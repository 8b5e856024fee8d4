"""The adapter that a setup leaves: trainers load it at any parallelism, and it is what was written."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.families.case import BY_NAME
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.jobs.setup_spec import PeftSettings, SetupSpec


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gqa", "lora"),
        ("gqa", "canonical_lora"),
        ("gqa", "dora"),
        ("qwen3-moe", "lora"),
        ("qwen3-moe", "canonical_lora"),
    ],
)
def test_ranks_load_a_fresh_adapter(
    workshop: Workshop, megatron: Ranks, two_ranks: Ranks, tmp_path: Path, name: str, kind: str
) -> None:
    root, adapter = tmp_path / "run", tmp_path / "run/adapter/release"
    peft = PeftSettings.model_validate({"type": kind, "dim": 4, "alpha": 8, "init_adapter": True})
    source = str(workshop.source(BY_NAME[name]))

    workshop.run(SetupSpec(source=source, target=str(root), profile="megatron-bridge", peft=peft))

    settings = json.loads((root / "peft_config.json").read_text())
    [written] = megatron.run("tests.megatron.adapters:saved_tensors", path=adapter)
    assert any(values.any() for values in written.values())
    for number, (ranks, sizes) in enumerate(((megatron, {}), (two_ranks, {"tp_size": 2, "sp": 1}))):
        again = tmp_path / f"again-{number}"
        ranks.run(
            "tests.megatron.adapters:saved_again", root=root, source=adapter, target=again, peft=settings, sizes=sizes
        )
        [loaded] = megatron.run("tests.megatron.adapters:saved_tensors", path=again)
        assert loaded.keys() == written.keys()
        assert all(np.array_equal(loaded[key], written[key]) for key in written)
