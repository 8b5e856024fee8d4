"""A live model's weights rounded as another checkpoint stores them: what a cast or fp8 does, and nothing else."""
# torch and Megatron are typed in part:
# pyright: basic

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..mapping.blocks import Block, Permutation, Task
from ..mapping.precision import HELD_IN_FP32
from .tensors import DTYPES, put_together, quantized_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Either to a dtype, or of the named matrices, under HF's names, to e4m3 with a scale for each block."""

    dtype: str | None = None
    block: int = 0
    names: Collection[str] = ()
    kept: Collection[str] = ()
    """Tensors that no cast touches."""


def round_to_dtype(model: Any, rounding: Rounding) -> None:
    """Each value to the nearest that the dtype holds."""
    assert rounding.dtype is not None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in rounding.kept and not name.endswith(HELD_IN_FP32):
                parameter.copy_(parameter.to(DTYPES[rounding.dtype]).to(parameter.dtype))


def round_hf(model: Any, rounding: Rounding) -> None:
    """Also where transformers holds the experts' matrices as one parameter, [experts, rows, columns]."""
    if rounding.dtype is not None:
        round_to_dtype(model, rounding)
        return
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in rounding.names:
                parameter.copy_(_by_block(parameter, rounding.block))
            elif ".experts." in name and parameter.dim() == 3:
                for matrix in parameter:
                    matrix.copy_(_by_block(matrix, rounding.block))


def round_megatron(model: Any, rounding: Rounding, tasks: tuple[Task, ...]) -> None:
    """Blocks are those of HF's matrices, which `tasks` make of Megatron's rows."""
    if rounding.dtype is not None:
        round_to_dtype(model, rounding)
        return
    from ..integration.live_tensors import live_shards

    wanted = [task for task in tasks if task.target.name in rounding.names]
    names = {block.source.name for task in wanted for block in task.blocks}
    live = _Live({})
    for shard in live_shards(model, names):
        pieces = live.data.setdefault((shard.place.address.name, shard.place.address.index), [])
        pieces.append((shard.place.offset[0], shard.data))
    with torch.no_grad():
        for task in wanted:
            rounded = _by_block(put_together(task, live), rounding.block)
            rows = rounded if task.permutation is None else _turned_back(rounded, task.permutation)
            start = 0
            for block in task.blocks:
                live.write(block, rows, start)
                start += block.rows


@dataclass(frozen=True, slots=True)
class _Live:
    """A TensorReader of a model's own memory, in pieces of rows where it holds a tensor so: gate's, and up's."""

    data: dict[tuple[str, tuple[int, ...]], list[tuple[int, torch.Tensor]]]

    def read(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        pieces = sorted(self.data[name, index], key=lambda piece: piece[0])
        return torch.cat([piece for _, piece in pieces])

    def write(self, block: Block, rows: torch.Tensor, start: int) -> None:
        """The block's rows are those of `rows` from `start`."""
        for first, piece in self.data[block.source.name, block.source.index]:
            low, high = max(first, block.start), min(first + piece.shape[0], block.start + block.rows)
            if low < high:
                own = rows.reshape(-1, *piece.shape[1:])[start + low - block.start : start + high - block.start]
                piece[low - first : high - first].copy_(own)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(self.read(name, index).shape) for name, index in self.data}


def _by_block(weight: torch.Tensor, block: int) -> torch.Tensor:
    codes, scales = quantized_of(weight, block)
    rows, columns = weight.shape
    spread = scales.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    return codes.float() * spread


def _turned_back(values: torch.Tensor, permutation: Permutation) -> torch.Tensor:
    back = permutation.inverse()
    return values.reshape(back.shape).permute(back.axes)
