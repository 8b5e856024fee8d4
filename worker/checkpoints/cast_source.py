"""A checkpoint of either side with its tensors in another dtype."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .dtypes import BY_SAFETENSORS
from .extents import Computed, Extent, Operand, StoredTensor
from .operations import Cast
from .source import Source

_FLOATS = ("BF16", "F16", "F32")


def main_dtype(source: Source) -> str:
    """The float dtype that holds the most elements; BF16 where there is none."""
    held = dict.fromkeys(_FLOATS, 0)
    for tensor in source.tensors.values():
        if tensor.dtype in held:
            held[tensor.dtype] += prod(tensor.shape)
    return max(_FLOATS, key=lambda dtype: held[dtype])


@dataclass(frozen=True, slots=True)
class CastSource:
    """A Source. Of a checkpoint in bf16 or fp16, tensors in fp32 stay so: somebody wanted them precise."""

    inner: Source
    dtype: str
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, inner: Source, dtype: str, fp32: Collection[str]) -> "CastSource":
        """`fp32` names tensors that stay in fp32 whatever the others are in."""
        main = main_dtype(inner)
        kept = {
            name
            for name, tensor in inner.tensors.items()
            if tensor.dtype not in _FLOATS or (tensor.dtype == "F32" and (main != "F32" or name in fp32))
        }
        tensors = {name: tensor if name in kept else _as(tensor, dtype) for name, tensor in inner.tensors.items()}
        return cls(inner, dtype, tensors)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        return self.inner.files_of(names)

    def whole(self, name: str) -> tuple[Extent, ...]:
        return self._cast(name, self.inner.whole(name), 1, prod(self.tensors[name].shape))

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        extents = self.inner.rows(name, index, start, rows)
        return self._cast(name, extents, prod(self.tensors[name].shape[len(index) + 1 :]), rows)

    def _cast(self, name: str, extents: tuple[Extent, ...], columns: int, rows: int) -> tuple[Extent, ...]:
        stored, cast = self.inner.tensors[name], self.tensors[name]
        if stored.dtype == cast.dtype:
            return extents
        operand = Operand(extents, columns * stored.item_bytes)
        return (Computed(Cast(stored.dtype, cast.dtype), (operand,), 0, rows, columns * cast.item_bytes),)


def _as(tensor: StoredTensor, dtype: str) -> StoredTensor:
    return StoredTensor(dtype=dtype, shape=tensor.shape, item_bytes=BY_SAFETENSORS[dtype].item_bytes)
