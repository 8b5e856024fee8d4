"""On a rank: argument lists through Megatron-LM's own parser and checks, and the configs that it builds of them."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

_NEEDED = ("--train-iters", "1", "--lr", "1e-5", "--global-batch-size", "8")


def configs_of(asked: dict[str, list[str]], world_size: int = 1) -> dict[str, Any]:
    """By name, as JSON; what the parser or its checks refuse is an error."""
    with _a_host_with_kernels(world_size):
        return {name: _config_of(words) for name, words in asked.items()}


def values_of(asked: dict[str, list[str]]) -> dict[str, Any]:
    """By name, what Ferry reads in the parsed and checked arguments, as it does in a run's checkpoint."""
    from worker.mapping.training_args import values_of_args

    with _a_host_with_kernels(1):
        return {name: _plain(values_of_args(vars(_parsed(words)), name).values) for name, words in asked.items()}


def samples_of(words: list[str], world_size: int) -> Any:
    """How many samples Megatron's program, given these words alone, asks its data for: to train, validate and test."""
    from megatron.training import global_vars
    from megatron.training.training import get_train_valid_test_num_samples

    with _a_host_with_kernels(world_size), mock.patch.object(global_vars, "_GLOBAL_ARGS", _parsed(words, ())):
        return get_train_valid_test_num_samples()


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str, list, tuple))}


def _config_of(words: list[str]) -> dict[str, object]:
    from megatron.training.argument_utils import gpt_config_from_args, hybrid_config_from_args

    from worker.mapping.model_config import to_json_dict

    parsed = _parsed(words)
    return to_json_dict((hybrid_config_from_args if parsed.hybrid_layer_pattern else gpt_config_from_args)(parsed))


def _parsed(words: list[str], needed: tuple[str, ...] = _NEEDED) -> Any:
    from megatron.training import arguments

    with mock.patch.object(sys, "argv", ["pretrain.py", *words, *needed]):
        parsed = arguments.parse_args()
    arguments.validate_args(parsed)
    return parsed


def ddp_defaults() -> dict[str, object]:
    """Every field of upstream's DDP config but those of dtypes, with its default."""
    from dataclasses import asdict, fields

    from megatron.core.distributed import DistributedDataParallelConfig

    names = [field.name for field in fields(DistributedDataParallelConfig) if not field.name.endswith("_dtype")]
    values = asdict(DistributedDataParallelConfig())
    return {name: values[name] for name in names}


@contextmanager
def _a_host_with_kernels(world_size: int) -> Iterator[None]:
    """As a trainer's: the parser's checks look for a GPU and for Transformer Engine's fused functions."""
    environment = {"WORLD_SIZE": str(world_size), "RANK": "0", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}

    import torch
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.transformer.moe import moe_utils

    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)))
        hopper = mock.Mock(major=9)
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_properties", return_value=hopper))
        stack.enter_context(mock.patch.object(rope_utils, "fused_apply_rotary_pos_emb", object()))
        for name in vars(moe_utils):
            if name.startswith("fused_"):
                stack.enter_context(mock.patch.object(moe_utils, name, object()))
        yield
