"""The argument file of a setup for Megatron-LM: its own parser takes it, and builds the config that Ferry built."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from tests.families.case import CASES
from tests.families.workshop import Workshop
from tests.large_stand_ins import LLAMA_405B, QWEN3_235B
from tests.megatron.ranks import Ranks
from tests.trainer_runs import run_of
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import Parallelism
from worker.mapping.family import megatron_values
from worker.mapping.model_config import build, to_json_dict
from worker.mapping.upstream_classes import VARIANT_FIELDS
from worker.mapping.vocabulary import padded_size
from worker.setups.ddp_values import FIELDS
from worker.setups.layout import with_its_chunks
from worker.setups.profiles.megatron_lm import MEGATRON_LM, model_arguments
from worker.setups.run_values import run_values
from worker.setups.trainer_run import TrainerRun

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
        "overlap_p2p_comm",  # the program overlaps virtual stages
        "batch_p2p_comm",
        "gradient_accumulation_fusion",
        "inference_sampling_seed",
        "pipeline_dtype",
        "use_cpu_initialization",
        "tensor_parallel_num_weight_shards",
        "expert_tensor_parallel_num_weight_shards",
        "apply_rope_fusion",  # the program switches it off with yarn
        "add_qkv_bias",  # it sets it with add_bias_linear, which says the same
        "should_pad_vocab",  # it is given the padded size
    }
)

SAID = frozenset(
    {
        "num_layers",
        "hidden_size",
        "ffn_hidden_size",
        "num_attention_heads",
        "num_query_groups",
        "kv_channels",
        "vocab_size",
        "make_vocab_size_divisible_by",
        "seq_length",
        "activation_func",
        "gated_linear_unit",
        "normalization",
        "layernorm_epsilon",
        "qk_layernorm",
        "add_bias_linear",
        "position_embedding_type",
        "rotary_base",
        "rotary_percent",
        "share_embeddings_and_output_weights",
        "num_moe_experts",
        "moe_ffn_hidden_size",
        "moe_router_topk",
        "moe_router_score_function",
        "moe_shared_expert_intermediate_size",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_head_dim",
        "v_head_dim",
        "mtp_num_layers",
        "hybrid_layer_pattern",
    }
)
"""Values that Ferry reads back where a run left its arguments in a checkpoint, under the same name."""


@pytest.mark.slow
def test_megatrons_parser_builds_the_same_config(workshop: Workshop, megatron: Ranks) -> None:
    asked: dict[str, list[str]] = {}
    ours: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Any]] = {}
    refused: set[str] = set()
    for case in CASES:
        run = run_of(json.loads((workshop.source(case) / "config.json").read_text()), Path("/run"))
        try:
            asked[case.name] = [word for group in model_arguments(run, "Megatron-LM") for word in group]
        except BadInputError as error:
            refused.add(error.info.thing.split()[2])
            continue
        values[case.name] = json.loads(json.dumps(dict(run.model.mcore.values)))
        ours[case.name] = to_json_dict(build(megatron_values(run.model.family, run_values(run), "test")))

    [theirs] = megatron.run("tests.megatron.arguments:configs_of", asked=asked)
    [read] = megatron.run("tests.megatron.arguments:values_of", asked=asked)

    assert refused <= INEXPRESSIBLE
    assert len(ours) > 60
    for name, config in ours.items():
        assert _of_model(theirs[name]) == _of_model(config), name
        assert {key: read[name].get(key) for key in SAID if key in values[name]} == {
            key: value for key, value in values[name].items() if key in SAID
        }, name


@pytest.mark.slow
def test_megatrons_parser_takes_every_parallelism(megatron: Ranks) -> None:
    dense, moe = {**LLAMA_405B, "vocab_size": 257}, {**QWEN3_235B, "num_hidden_layers": 96}
    runs = {
        "tp": run_of(dense, parallelism=Parallelism(tp_size=2, world_size=8)),
        "tp alone": run_of(dense, parallelism=Parallelism(tp_size=8, sequence_parallel=False)),
        "vpp": run_of(dense, parallelism=Parallelism(pp_size=2, vpp_size=3, cp_size=4), recompute="selective"),
        "uneven": run_of(
            dense, parallelism=Parallelism(pp_size=8, first_stage_layers=15, last_stage_layers=15), recompute="full"
        ),
        "layout": run_of(
            dense, parallelism=with_its_chunks(Parallelism(pp_size=4, pipeline_layout="E,t*15|(t*16|)*6,t*15L"))
        ),
        "experts": run_of(moe, parallelism=Parallelism(tp_size=2, pp_size=2, ep_size=4, etp_size=1)),
        "experts with tp": run_of(moe, parallelism=Parallelism(tp_size=2, ep_size=4)),
    }
    asked = {name: [word for group in model_arguments(run, "") for word in group] for name, run in runs.items()}

    [theirs] = megatron.run("tests.megatron.arguments:configs_of", asked=asked, world_size=8)

    for name, run in runs.items():
        ours = to_json_dict(build(megatron_values(run.model.family, run_values(run), "test")))
        padded = {"vocab_size": padded_size(run.model.mcore, run.parallelism.tp_size)}
        assert _of_model(theirs[name]) == _of_model(ours) | padded, name


def test_what_the_start_script_adds_is_enough_for_megatrons_program(megatron: Ranks, tmp_path: Path) -> None:
    run = run_of(LLAMA_405B, tmp_path / "run", parallelism=Parallelism(tp_size=8, world_size=8))
    words = started(run, tmp_path)

    [samples] = megatron.run("tests.megatron.arguments:samples_of", words=words, world_size=8)

    assert samples == (1000, 300, 100)


def started(run: TrainerRun, folder: Path) -> list[str]:
    """The words that the start script gives the program, with a stand-in for torchrun."""
    run.target.mkdir()
    for name, data in MEGATRON_LM.files(run).items():
        (run.target / name).write_bytes(data)
    torchrun = folder / "torchrun"
    torchrun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    torchrun.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "DATA": "/data/text"}
    command = ["bash", str(run.target / "start.sh")]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()
    return told[told.index("pretrain_gpt.py") + 1 :]


def test_ddp_fields_and_defaults_are_upstreams(megatron: Ranks) -> None:
    [theirs] = megatron.run("tests.megatron.arguments:ddp_defaults")

    assert theirs == FIELDS


def _of_model(config: dict[str, Any]) -> dict[str, object]:
    flat = {**config, **cast("dict[str, object]", config["transformer"]), "transformer": None}
    return {name: value for name, value in flat.items() if name not in NO_PART_OF_THE_MODEL}
