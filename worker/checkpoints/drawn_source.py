"""A checkpoint that nobody wrote: every tensor drawn from a seed, its name and its law."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from zlib import crc32

from .dtypes import BY_SAFETENSORS
from .extents import Computed, Extent, StoredTensor, flat_index
from .operations import Drawn, Law


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnTensor:
    """One tensor of it; `low` and `high` as in `Drawn`."""

    shape: tuple[int, ...]
    dtype: str
    law: Law
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class DrawnSource:
    """A Source. It reads no file."""

    seed: int
    drawn: Mapping[str, DrawnTensor]
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, seed: int, drawn: Mapping[str, DrawnTensor]) -> "DrawnSource":
        tensors = {
            name: StoredTensor(dtype=one.dtype, shape=one.shape, item_bytes=BY_SAFETENSORS[one.dtype].item_bytes)
            for name, one in drawn.items()
        }
        return cls(seed, drawn, tensors)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        return ()

    def whole(self, name: str) -> tuple[Extent, ...]:
        shape = self.tensors[name].shape
        return self.rows(name, (), 0, shape[0] if shape else 1)

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        one, item_bytes = self.drawn[name], self.tensors[name].item_bytes
        # Rows of the last axis, whichever slice they are asked for in: what is drawn follows from the place alone.
        columns = one.shape[-1] if len(one.shape) > 1 else 1
        each = prod(one.shape[len(index) + 1 :]) // columns
        first = (
            flat_index(index, one.shape[: len(index)]) * prod(one.shape[len(index) : len(index) + 1]) + start
        ) * each
        seed = (self.seed, crc32(name.encode()))
        operation = Drawn(columns, one.dtype, seed, one.law, one.low, one.high)
        return (Computed(operation, (), first, rows * each, columns * item_bytes),)
