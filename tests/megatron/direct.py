"""On a rank: a checkpoint loaded by upstream's strategy and by ours, which must agree."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner

from worker.integration import DirectLoadStrategy, load_checkpoint

from .adapters import Sizes, built
from .here import megatron_here

UPSTREAM = TorchDistLoadShardedStrategy


def compared(root: Path, folder: Path, sizes: Sizes, dtype: str = "float32") -> tuple[int, list[str], int]:
    """How many tensors and objects the model has, which differ, and how many parts of tensors upstream's read for ours.

    The model's parameters are of `dtype`, whatever the checkpoint's are.
    """
    with megatron_here():
        expected, _ = _loaded(root, folder, sizes, dtype, UPSTREAM())
        found, read = _loaded(root, folder, sizes, dtype, DirectLoadStrategy())
    assert expected.keys() == found.keys()
    return len(found), [name for name, value in found.items() if not _same(value, expected[name])], read


def loaded_at_all(root: Path, folder: Path) -> None:
    """By ours."""
    with megatron_here():
        _loaded(root, folder, {}, "float32", DirectLoadStrategy())


def _loaded(root: Path, folder: Path, sizes: Sizes, dtype: str, strategy: Any) -> tuple[dict[str, Any], int]:
    """What a model holds that was filled with NaN before, and the parts of tensors that upstream's reader read."""
    model = built(root, sizes).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    read = 0
    ordinary = FileSystemReader.read_data

    def counted(reader: FileSystemReader, plan: LoadPlan, planner: LoadPlanner) -> Any:
        nonlocal read
        read += sum(1 for item in plan.items if item.type is LoadItemType.TENSOR)
        return ordinary(reader, plan, planner)

    with mock.patch.object(FileSystemReader, "read_data", counted):
        load_checkpoint([model], folder, load_strategy=strategy)
    return model.state_dict(), read


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b)
