"""The argument file of a setup for Megatron-LM: its own parser takes it, and builds the config that Ferry built."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from tests.families.case import CASES
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from tests.trainer_runs import run_of
from worker.jobs.errors import BadInputError
from worker.mapping.family import megatron_values
from worker.mapping.model_config import build, to_json_dict
from worker.mapping.upstream_classes import VARIANT_FIELDS
from worker.setups.profiles.megatron_lm import model_arguments
from worker.setups.run_values import run_values

INEXPRESSIBLE = VARIANT_FIELDS | {
    "rotary_base",  # a fraction
    "rope_scaling_factor",  # the program builds with 8, whatever it is told
    "original_max_position_embeddings",
}
"""Values for which Megatron-LM has no argument."""

NO_PART_OF_THE_MODEL = frozenset(
    {
        "extra_checkpoint_metadata",
        "cp_comm_type",
        "gradient_accumulation_fusion",
        "inference_sampling_seed",
        "pipeline_dtype",
        "use_cpu_initialization",
        "tensor_parallel_num_weight_shards",
        "expert_tensor_parallel_num_weight_shards",
        "apply_rope_fusion",  # the program switches it off with yarn
        "add_qkv_bias",  # it sets it with add_bias_linear, which says the same
    }
)


@pytest.mark.slow
def test_megatrons_parser_builds_the_same_config(workshop: Workshop, megatron: Ranks) -> None:
    asked: dict[str, list[str]] = {}
    ours: dict[str, dict[str, Any]] = {}
    refused: set[str] = set()
    for case in CASES:
        run = run_of(json.loads((workshop.source(case) / "config.json").read_text()), Path("/run"))
        try:
            asked[case.name] = [word for group in model_arguments(run, "Megatron-LM") for word in group]
        except BadInputError as error:
            refused.add(error.info.thing.split()[2])
            continue
        ours[case.name] = to_json_dict(build(megatron_values(run.model.family, run_values(run), "test")))

    [theirs] = megatron.run("tests.megatron.arguments:configs_of", asked=asked)

    assert refused <= INEXPRESSIBLE
    assert len(ours) > 60
    for name, config in ours.items():
        assert _of_model(theirs[name]) == _of_model(config), name


def _of_model(config: dict[str, Any]) -> dict[str, object]:
    flat = {**config, **cast("dict[str, object]", config["transformer"]), "transformer": None}
    return {name: value for name, value in flat.items() if name not in NO_PART_OF_THE_MODEL}
