"""On a rank: the start of Megatron's own training program, which finds and loads a checkpoint by `--load` alone."""

import argparse
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.num_microbatches_calculator import (
    destroy_num_microbatches_calculator,
    init_num_microbatches_calculator,
)
from megatron.training import checkpointing, global_vars
from megatron.training.arguments import add_megatron_arguments

from worker.checkpoints.plain_values import plain_attributes
from worker.verification.off_cuda import megatron_on

from .model import build, forward


def logits_after_load(
    root: Path, tokens: list[list[int]], tp_size: int = 1, options: tuple[str, ...] = ()
) -> tuple[int, np.ndarray]:
    """Megatron's `load_checkpoint` as at the start of a training run with `--load` and `options`.

    Its iteration, and the logits then.
    """
    with megatron_on("cpu"), torch.no_grad():
        model = build(root, tp_size, 1, torch.float32)
        with mock.patch.object(global_vars, "_GLOBAL_ARGS", arguments(model, "--load", str(root), *options)):
            init_num_microbatches_calculator(0, None, 1, 1, 1)
            try:
                iteration, _ = checkpointing.load_checkpoint([model], None, None, strict=True)
            finally:
                destroy_num_microbatches_calculator()
        answer = forward(model, torch.tensor(tokens))
    assert answer is not None  # one stage
    return int(iteration), answer.numpy()


def arguments(model: GPTModel, *options: str) -> argparse.Namespace:
    """Megatron's parsed command line, and what its training program derives from the rest of it."""
    parsed = add_megatron_arguments(argparse.ArgumentParser()).parse_args(options)
    derived = {
        "rank": torch.distributed.get_rank(),
        "world_size": torch.distributed.get_world_size(),
        "tensor_model_parallel_size": model.config.tensor_model_parallel_size,
        "pipeline_model_parallel_size": model.config.pipeline_model_parallel_size,
        "data_parallel_size": 1,
        "padded_vocab_size": model.vocab_size,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
        "skipped_train_samples": 0,
        "params_dtype": model.config.params_dtype,
        "iteration": 0,
        "use_dist_ckpt": parsed.ckpt_format != "torch",
        "non_persistent_global_ckpt_dir": None,
    }
    return argparse.Namespace(**{**vars(parsed), **derived})


def parsed(line: str) -> dict[str, object]:
    """A command line as Megatron's parser reads it, in plain values, and what its program derives from `--bf16`."""
    found = add_megatron_arguments(argparse.ArgumentParser()).parse_args(line.split())
    return plain_attributes({**vars(found), "params_dtype": "bfloat16"})
