"""What Megatron-Core's ranks would refuse is refused by its field, and what they take is let through."""

from typing import Any

import pytest

from tests.families.case import BY_NAME
from tests.trainer_runs import run_of
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import DdpSettings, Parallelism, PeftSettings
from worker.setups.parallel_checks import refuse_impossible
from worker.setups.trainer_run import TrainerRun


def run_of_case(name: str, sizes: dict[str, Any], **fields: Any) -> TrainerRun:
    case = BY_NAME[name]
    return run_of({"model_type": case.model_type, **case.config}, parallelism=Parallelism(**sizes), **fields)


@pytest.mark.parametrize(
    ("name", "sizes", "field", "expected"),
    [
        ("gpt-oss", {"tp_size": 2}, "parallelism.etp_size", "biases of experts"),
        ("gpt-oss", {"cp_size": 2}, "parallelism.cp_size", "sliding windows"),
        ("gemma3-all-full", {"tp_size": 8}, "parallelism.tp_size", "4 attention heads"),
        ("mistral-window", {"cp_size": 2}, "parallelism.cp_size", "sliding windows"),
        ("gemma2", {"cp_size": 2}, "parallelism.cp_size", "sliding windows"),
        ("qwen3-next", {"cp_size": 4}, "parallelism.cp_size", "linear_num_key_heads, 2"),
        ("qwen3-next", {"tp_size": 2, "cp_size": 2}, "parallelism.cp_size", "linear_num_key_heads, 2"),
        ("nemotron-h", {"cp_size": 8}, "parallelism.cp_size", "4 Mamba heads"),
        ("nemotron-h", {"tp_size": 4}, "parallelism.tp_size", "Mamba groups, 2"),
        ("nemotron-h-groups", {"cp_size": 3}, "parallelism.cp_size", "4 Mamba heads"),
        ("nemotron-h", {"pp_size": 2, "vpp_size": 2}, "parallelism.vpp_size", "hybrid model"),
        ("olmoe-gqa", {"tp_size": 4}, "parallelism.tp_size", "2 query groups"),
    ],
    ids=str,
)
def test_what_megatron_refuses_is_refused_by_its_field(
    name: str, sizes: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(BadInputError, match=expected) as raised:
        refuse_impossible(run_of_case(name, sizes, sequence_length=48))

    assert raised.value.info.thing == f"spec field {field}"
    assert raised.value.info.next_step


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gpt-oss", {"tp_size": 2, "etp_size": 1}),
        ("gpt-oss", {"tp_size": 2, "etp_size": 1, "ep_size": 2}),
        ("gqa", {"cp_size": 2}),
        ("deepseek-v3", {"cp_size": 2}),
        ("qwen3-next", {"cp_size": 2}),
        ("nemotron-h", {"cp_size": 4}),
        ("nemotron-h", {"tp_size": 2, "cp_size": 2}),
        ("nemotron-h", {"pp_size": 2, "first_stage_layers": 1}),
        ("nemotron-h", {"pp_size": 3, "last_stage_layers": 2}),
        ("olmoe-gqa", {"tp_size": 2}),
        ("gqa", {"tp_size": 4}),
    ],
    ids=str,
)
def test_what_megatron_takes_is_let_through(name: str, sizes: dict[str, Any]) -> None:
    refuse_impossible(run_of_case(name, sizes))


def with_instances(count: int) -> DdpSettings:
    return DdpSettings(overrides={"num_distributed_optimizer_instances": count})


@pytest.mark.parametrize(
    ("name", "sizes", "instances", "expected"),
    [
        ("gqa", {"tp_size": 2, "world_size": 8}, 3, "a divisor of the 4 data-parallel ranks"),
        ("qwen3-moe", {"ep_size": 2, "world_size": 4}, 4, "a divisor of the 2 data-parallel ranks of experts"),
        ("gqa", {}, 0, "a divisor of the 1 data-parallel ranks"),
    ],
    ids=str,
)
def test_optimizer_instances_divide_the_data_parallel_ranks(
    name: str, sizes: dict[str, Any], instances: int, expected: str
) -> None:
    with pytest.raises(BadInputError, match=expected) as raised:
        refuse_impossible(run_of_case(name, sizes, ddp=with_instances(instances)))

    assert "num_distributed_optimizer_instances" in raised.value.info.thing


def test_optimizer_instances_that_divide_are_let_through() -> None:
    refuse_impossible(run_of_case("gqa", {"cp_size": 2, "world_size": 8}, ddp=with_instances(4)))


@pytest.mark.parametrize(("name", "expected"), [("gemma2", "softcapped scores"), ("gpt-oss", "sinks")])
def test_context_parallelism_is_refused_without_windows_too(name: str, expected: str) -> None:
    case = BY_NAME[name]
    layers = ["full_attention"] * case.config["num_hidden_layers"]  # pyright: ignore[reportOperatorIssue]  # a number
    config = {"model_type": case.model_type, **case.config, "layer_types": layers}

    with pytest.raises(BadInputError, match=expected):
        refuse_impossible(run_of(config, parallelism=Parallelism(cp_size=2)))


@pytest.mark.parametrize(
    ("name", "peft", "sizes", "field", "expected"),
    [
        ("gqa", {"dim": 3}, {"tp_size": 2}, "peft.dim", "a multiple of tp_size, 2"),
        ("qwen3-moe", {"type": "dora"}, {}, "peft.type", "experts are grouped"),
        ("mqa", {"type": "canonical_lora"}, {"tp_size": 2}, "peft.type", "the 1 query groups"),
        ("qwen3-next", {"type": "canonical_lora"}, {}, "peft.type", "its gate"),
        ("nemotron", {"type": "canonical_lora"}, {}, "peft.type", "no gate"),
    ],
    ids=str,
)
def test_adapters_that_no_rank_can_make_are_refused(
    name: str, peft: dict[str, Any], sizes: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(BadInputError, match=expected) as raised:
        refuse_impossible(run_of_case(name, sizes, peft=PeftSettings(**peft)))

    assert raised.value.info.thing == f"spec field {field}"


@pytest.mark.parametrize(
    ("name", "peft", "sizes"),
    [
        ("gqa", {"dim": 3, "target_modules": ("linear_proj",)}, {"tp_size": 2}),
        ("qwen3-moe", {"type": "dora", "exclude_modules": ("*.experts.*",)}, {}),
        ("qwen3-moe", {"type": "dora", "target_modules": ("linear_proj",)}, {}),
        ("gqa", {"type": "canonical_lora"}, {"tp_size": 2}),
        ("mqa", {}, {"tp_size": 2}),
        ("qwen3-next", {}, {"tp_size": 2}),
    ],
    ids=str,
)
def test_other_adapters_are_let_through(name: str, peft: dict[str, Any], sizes: dict[str, Any]) -> None:
    refuse_impossible(run_of_case(name, sizes, peft=PeftSettings(**peft)))


def test_experts_that_a_model_lacks_are_not_cut() -> None:
    with pytest.raises(BadInputError, match="etp_size: found 4, expected 1, since the model has no experts"):
        refuse_impossible(run_of_case("gqa", {"etp_size": 4}))
