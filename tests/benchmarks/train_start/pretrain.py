"""On a rank: Megatron-LM's program for GPT models, as its `pretrain_gpt.py` calls `megatron.training` 0.19.2.

Its arguments are Megatron's, and a few of our own: a batch that every step sees, where to tell what happened, and which
attention the local layers have.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from megatron.core.datasets import utils as dataset_utils
from megatron.core.enums import ModelType
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.training import get_args, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args

from tests.megatron.program import program_on_cpu

from .local_layers import local_layers, name_expert_norms
from .watch import Watch

Batch = dict[str, torch.Tensor]


class Same(torch.utils.data.Dataset[Batch]):
    """A step's samples, over and over."""

    def __init__(self, batch: dict[str, np.ndarray], samples: int) -> None:
        self._batch = {name: torch.from_numpy(value) for name, value in batch.items()}
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Batch:
        tokens = self._batch["tokens"]
        return {name: value[index % len(tokens)] for name, value in self._batch.items()}


def main() -> None:
    """Megatron's arguments, its model config from them, its training."""
    with ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(program_on_cpu())
        # The builder of real data sets' indices comes compiled with the wheel; a host may have no `make`.
        stack.enter_context(mock.patch.object(dataset_utils, "compile_helpers"))
        args = parse_and_validate_args(extra_args_provider=_our_arguments)
        stack.enter_context(local_layers(flash=args.attention == "flash"))
        config = gpt_config_from_args(args)
        config.pre_wrap_hooks.append(name_expert_norms)
        watch = Watch(length=args.seq_length)
        pretrain(
            pretrain_cfg_container_from_args(args, config),
            _data_sets,
            ModelType.encoder_or_decoder,
            partial(_forward_step, watch),
        )
        watch.finish()
        watch.write(args.report)
        torch.distributed.destroy_process_group()


def _our_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    group = parser.add_argument_group("the start that is tried")
    group.add_argument("--batch", type=Path, required=True)
    group.add_argument("--report", type=Path, required=True)
    group.add_argument("--attention", choices=("local", "flash"), default="local")
    return parser


def _data_sets(samples: tuple[int, int, int], vp_stage: int | None = None) -> tuple[Same, Same, Same]:
    batch = dict(np.load(get_args().batch))
    train, validation, test = (Same(batch, count) for count in samples)
    return train, validation, test


_data_sets.is_distributed = True  # every rank reads them


def _forward_step(watch: Watch, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
    given = {name: value.cuda(non_blocking=True) for name, value in next(batches).items()}
    tokens = given["tokens"]
    if model.training:
        watch.micro_batch(model, tokens, get_num_microbatches())
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    with watch.forward(model):
        answer = model(tokens, places, None, labels=given["labels"])
    return answer, partial(_loss, torch.ones_like(answer))


def _loss(mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    total, count = (losses.float() * mask).sum(), mask.sum().to(torch.int)
    return total, count, {"lm loss": torch.stack([total.detach(), count.float()])}


if __name__ == "__main__":
    main()
