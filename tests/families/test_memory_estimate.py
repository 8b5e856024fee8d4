"""What a setup says that a rank holds, against Megatron's own ranks."""

import json
from typing import Any

import pytest

from tests.families.case import BY_NAME
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from tests.trainer_runs import run_of
from worker.jobs.setup_spec import Parallelism
from worker.setups.memory_estimate import estimate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gqa", {"tp_size": 2}),
        ("gqa", {"pp_size": 2}),
        ("tied", {"pp_size": 2}),
        ("all-biases", {"tp_size": 2}),
        ("qwen3-moe", {"ep_size": 2, "etp_size": 1}),
        ("qwen3-moe", {"tp_size": 2}),
        ("qwen3-moe-dense-first", {"pp_size": 2}),
        ("deepseek-v3", {"tp_size": 2}),
        ("deepseek-v3", {"ep_size": 2, "etp_size": 1}),
        ("deepseek-v3-mtp", {"pp_size": 2}),
        ("mqa", {"tp_size": 2}),
        ("qwen3", {"tp_size": 2}),
        ("nemotron-biased", {"tp_size": 2}),
        ("gemma2", {"tp_size": 2}),
        ("gemma3", {"tp_size": 2}),
        ("olmoe-gqa", {"tp_size": 2}),
        ("minimax-m2", {"tp_size": 2}),
        ("minimax-m2", {"ep_size": 2, "etp_size": 1}),
        ("gpt-oss", {"tp_size": 2, "etp_size": 1}),
        ("gpt-oss", {"ep_size": 2, "etp_size": 1}),
        ("deepseek-v2", {"tp_size": 2}),
        ("deepseek-v2-lite", {"tp_size": 2}),
        ("glm4-moe-mtp", {"tp_size": 2}),
        ("qwen3-next", {"tp_size": 2}),
        ("qwen3-next", {"pp_size": 2}),
        ("nemotron-h", {"tp_size": 2}),
        ("nemotron-h", {"pp_size": 2}),
        ("nemotron-h", {"pp_size": 2, "last_stage_layers": 1}),
        ("qwen3-next", {"pp_size": 2, "last_stage_layers": 3}),
        ("deepseek-v3-mtp", {"pp_size": 2, "last_stage_layers": 1}),
        ("nemotron-h-latent-experts", {"tp_size": 2}),
        ("nemotron-h-latent-experts", {"ep_size": 2, "etp_size": 1}),
    ],
    ids=str,
)
def test_parameters_of_a_rank_are_exact(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, name: str, sizes: dict[str, Any]
) -> None:
    case = BY_NAME[name]
    config = json.loads((workshop.source(case) / "config.json").read_text())
    parallelism = Parallelism(**sizes)

    ours = estimate(run_of(config, parallelism=parallelism, world_size=2))

    asked = {"tp_size": 1, "pp_size": 1, "ep_size": 1} | {
        name: size for name, size in sizes.items() if name != "etp_size"
    }
    theirs = two_ranks_with_transformer_engine.run(
        "tests.megatron.counts:parameters", root=workshop.imported(case), **asked
    )
    stages = [stage.parameters for stage in ours.stages]
    assert theirs == (stages if parallelism.pp_size == 2 else stages * 2)
