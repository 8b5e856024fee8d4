"""Upstream's loading, with the tensors read from where they lie: its cost follows what a rank asks for.

Upstream (megatron-core 0.19, torch 2.14) compares every chunk of a stack that a rank asks for with every chunk that is
stored, and those of all ranks with one another: minutes for a model of many layers and experts. It reads a stored chunk
whole for each part of it that is asked for. Here a chunk is found by its slice of the stack, and only the part is read.
"""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any, cast

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.overlaps import Overlap, overlaps
from ..checkpoints.refusal import bad_checkpoint
from ..checkpoints.torch_dist import TorchDistFolder


class DirectLoadStrategy(TorchDistLoadShardedStrategy):
    """A `sharded_strategy` of `dist_checkpointing.load`, for checkpoints of any writer and at any parallelism.

    What is no plain tensor (objects, tensors of a quantized type), or not as the checkpoint has it, is left to upstream
    with its checks and its errors.
    """

    def load(
        self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path | str, async_strategy: str = "mcore"
    ) -> dict[str, Any]:
        """The same dict, with values in the places of what describes them."""
        folder = TorchDistFolder.open(Path(checkpoint_dir))
        asked = list(nested_values(sharded_state_dict))
        plain = [value for value in asked if _is_plain(value, folder)]
        ours = {id(value) for value in plain}
        theirs = {str(number): value for number, value in enumerate(asked) if id(value) not in ours}
        answers: dict[str, Any] = {}
        if theirs:
            answers = super().load(theirs, Path(checkpoint_dir), async_strategy)
        found: dict[int, Any] = {id(theirs[number]): value for number, value in answers.items()}
        found |= _load(plain, folder)

        def answer(value: object) -> Any:
            return found[id(value)]

        return cast("dict[str, Any]", dict_list_map_outplace(answer, sharded_state_dict))


@dataclass(frozen=True, slots=True)
class _Read:
    """A part of a chunk, the tensor that it goes to, and how it is stored."""

    part: Overlap
    target: torch.Tensor
    dtype: torch.dtype


def _is_plain(value: object, folder: TorchDistFolder) -> bool:
    """Of torch's own classes, and of the shape that the checkpoint has, or allowed to differ from it."""
    if not isinstance(value, ShardedTensor) or value.flattened_range is not None or value.key not in folder.tensors:
        return False
    if value.data is not None and type(value.data) not in (torch.Tensor, torch.nn.Parameter):
        return False
    stored = folder.tensors[value.key].shape
    same = value.global_shape == stored
    return same or (value.allow_shape_mismatch and len(value.global_shape) == len(stored))


def _load(asked: Sequence[ShardedTensor], folder: TorchDistFolder) -> dict[int, torch.Tensor]:
    """The tensors, filled; by the id of what asked for them."""
    filled = {id(value): _target(value) for value in asked}
    _fill([read for value in asked for read in _reads(value, filled[id(value)], folder)])
    return filled


def _fill(reads: Iterable[_Read]) -> None:
    """File by file, each from its first byte on."""
    ordered = sorted(reads, key=lambda read: (read.part.path, read.part.offset))
    for path, of_file in groupby(ordered, key=lambda read: read.part.path):
        with path.open("rb") as file:
            data = mmap(file.fileno(), 0, access=ACCESS_COPY)  # never written; torch warns of memory that cannot be
        for read in of_file:
            read.target[read.part.target].copy_(_stored(data, read)[read.part.inside])


def _target(value: ShardedTensor) -> torch.Tensor:
    """The tensor to be filled. As upstream does it, zeros where a tensor may reach further than the stored one."""
    if value.data is None:
        value.init_data("cpu")
    assert value.data is not None
    data = value.data.detach()
    return data.zero_() if value.allow_shape_mismatch else data


def _reads(value: ShardedTensor, target: torch.Tensor, folder: TorchDistFolder) -> list[_Read]:
    stacked = value.prepend_axis_num
    sizes = (*(1 for _ in range(stacked)), *value.local_shape)
    parts = list(overlaps(folder.tiling(value.key), tuple(value.global_offset), sizes, stacked))
    if not value.allow_shape_mismatch and sum(part.numel for part in parts) != prod(sizes):
        found = f"chunks that do not make up {list(sizes)} at {list(value.global_offset)} of tensor {value.key!r}"
        raise bad_checkpoint(folder.folder, found, "exact tiling")
    dtype: torch.dtype = getattr(torch, BY_SAFETENSORS[folder.tensors[value.key].dtype].torch)
    return [_Read(part, target.view(sizes), dtype) for part in parts]


def _stored(data: mmap, read: _Read) -> torch.Tensor:
    """The whole chunk, none of it read yet."""
    count = prod(read.part.chunk)
    return torch.frombuffer(data, dtype=read.dtype, count=count, offset=read.part.offset).view(read.part.chunk)
