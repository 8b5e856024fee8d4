"""What trainers' helpers accept and refuse, where no model is needed."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from worker import integration
from worker.integration import Peft, create_ddp_config, create_peft
from worker.integration.model_checkpoint import generate_model_state_dict, load_sections


def test_a_rank_of_zero_or_none_means_no_adapter() -> None:
    assert create_peft({}) is None
    assert create_peft({"rank": 0}) is None
    assert create_peft({"dim": -1, "type": "dora"}) is None


def test_rank_is_another_name_of_dim() -> None:
    made = create_peft({"rank": 8, "target_modules": ["linear_qkv"]})

    assert made == Peft(dim=8, target_modules=("linear_qkv",))


@pytest.mark.parametrize(
    ("config", "argument", "expected"),
    [
        ({"lora_dtype": "fp32", "dtype": "bf16"}, "fp16", torch.float32),
        ({"dtype": "torch.bfloat16"}, "fp16", torch.bfloat16),
        ({}, torch.float16, torch.float16),
        ({}, None, None),
    ],
)
def test_the_nearest_dtype_wins(config: dict[str, Any], argument: Any, expected: torch.dtype | None) -> None:
    made = create_peft({"dim": 4, **config}, argument)

    assert made is not None
    assert made.lora_dtype is expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "vlm_lora"}, "adapter type: found 'vlm_lora', expected one of lora, canonical_lora, dora"),
        ({"dtype": "int8"}, "dtype 'int8': expected one of bf16"),
        ({"ranks": 4}, "adapter key: found 'ranks', expected one of type, target_modules"),
        ({"target_modules": ["q_proj"]}, "adapter lora target: found 'q_proj', expected one of linear_qkv"),
        ({"type": "canonical_lora", "target_modules": ["linear_qkv"]}, "expected one of linear_q, linear_k, linear_v"),
        ({"type": "dora", "target_modules": ["router"]}, "adapter dora target: found 'router'"),
        ({"dropout": 1.5}, "expected dim > 0, 0 <= dropout < 1"),
        ({"share_expert_adapters": True}, "adapter share_expert_adapters: found True, expected one of False"),
    ],
)
def test_what_is_not_supported_is_a_value_error_with_what_is(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        create_peft({"dim": 4, **config})


def test_patterns_name_layers_by_their_global_numbers() -> None:
    some = Peft(target_modules=("*.layers.1.*.linear_proj",))
    parts = Peft(type="canonical_lora", target_modules=("*.layers.0.*.linear_v", "linear_k"))

    assert some.parts_of("decoder.layers.1.self_attention.linear_proj") == ("",)
    assert some.parts_of("decoder.layers.0.self_attention.linear_proj") is None
    assert parts.parts_of("decoder.layers.0.self_attention.linear_qkv") == ("adapter_v", "adapter_k")
    assert parts.parts_of("decoder.layers.1.self_attention.linear_qkv") == ("adapter_k",)
    assert Peft(exclude_modules=("linear_fc2",)).parts_of("decoder.layers.0.mlp.linear_fc2") is None


def test_experts_share_the_rank_where_that_is_asked_for() -> None:
    peft = Peft(dim=8, normalize_moe_lora=True)

    assert (peft.rank_of(True, 2), peft.rank_of(False, 2)) == (4, 8)
    with pytest.raises(ValueError, match="expected a multiple of moe_router_topk 3"):
        peft.rank_of(True, 3)


def test_fsdp_implies_what_it_needs_and_overrides_win() -> None:
    plain = create_ddp_config()
    sharded = create_ddp_config(use_megatron_fsdp=True, overrides={"overlap_grad_reduce": False})

    assert create_ddp_config(wrap_with_ddp=False) is None
    assert plain is not None
    assert not plain.use_distributed_optimizer
    assert sharded is not None
    assert sharded.use_megatron_fsdp
    assert sharded.use_distributed_optimizer
    assert sharded.check_for_nan_in_grad
    assert sharded.data_parallel_sharding_strategy == "optim_grads_params"
    assert not sharded.overlap_grad_reduce


def test_an_unknown_ddp_field_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="override 'overlap_reduce'"):
        create_ddp_config(overrides={"overlap_reduce": True})


def test_one_chunk_takes_any_section_and_several_must_find_theirs() -> None:
    chunks = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    state = torch.nn.Linear(2, 2).state_dict()

    load_sections(chunks[0], {"model1": state}, strict=True)

    assert torch.equal(chunks[0].weight, state["weight"])
    with pytest.raises(KeyError, match=r"found .'model0'., expected 'model1'"):
        load_sections(chunks, {"model0": state}, strict=True)


def test_another_format_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="ckpt_format: found 'torch', expected one of torch_dist"):
        generate_model_state_dict([], ckpt_format="torch")


def test_every_public_name_is_there() -> None:
    assert all(getattr(integration, name) is not None for name in integration.__all__)
    assert integration.__all__ == sorted(integration.__all__, key=str)


def test_names_that_are_not_used_cost_no_import() -> None:
    code = "import sys, worker.integration; assert not {'torch', 'megatron.core'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
