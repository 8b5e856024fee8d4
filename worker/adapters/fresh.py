"""An adapter before its first step: A drawn, B zero, DoRA's magnitudes those of the base; it adds nothing yet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from zlib import crc32

from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.extents import Computed, Extent, Item, Operand, Zeros
from ..checkpoints.operations import Drawn, RowNorms
from ..mapping.bindings import Model
from ..mapping.blocks import Address
from .linears import Linear, linears
from .mcore_folder import LINEAR_IN, LINEAR_OUT, MAGNITUDE, adapter_name

Parts = Callable[[str], tuple[str, ...] | None]
"""Of a layer's full name: the adapters that it gets, "" for one of the whole layer; None for no adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRows:
    """A base's tensor, for magnitudes."""

    dtype: str
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshAdapter:
    """What decides its tensors."""

    dim: int
    seed: int
    dtype: str
    parts: Parts
    base: Callable[[Address], BaseRows] | None = None
    """With it, magnitudes are written: DoRA."""

    def items(self, model: Model) -> tuple[Item, ...]:
        """Every tensor, layer by layer; empty where the model has no such layer."""
        return tuple(item for layer in linears(model) for item in self._of(layer))

    def _of(self, layer: Linear) -> Iterator[Item]:
        parts = self.parts(layer.full_name)
        if parts is None:
            return
        if not layer.components or parts == ("",):
            yield from self._factors(layer, "", layer.rows)
            return
        for piece, component in zip(layer.pieces, layer.components, strict=True):
            if f"adapter_{component}" in parts:
                yield from self._factors(layer, component, piece.rows)

    def _factors(self, layer: Linear, component: str, rows: int) -> Iterator[Item]:
        yield self._item(layer, component, LINEAR_IN, (self.dim, layer.columns), self._a(layer, component))
        zeros = Zeros(rows * self.dim * self._item_bytes)
        yield self._item(layer, component, LINEAR_OUT, (rows, self.dim), zeros)
        if self.base is not None:
            base = self.base(Address(f"{layer.module}.weight", layer.index))
            operand = Operand(base.extents, layer.columns * BY_SAFETENSORS[base.dtype].item_bytes)
            norms = RowNorms(layer.columns, base.dtype, self.dtype)
            yield self._item(
                layer, component, MAGNITUDE, (rows,), Computed(norms, (operand,), 0, rows, self._item_bytes)
            )

    def _a(self, layer: Linear, component: str) -> Extent:
        """Xavier's normal, as Megatron-Bridge draws it by default."""
        seed = (self.seed, crc32(f"{layer.address} {component}".encode()))
        law = Drawn(layer.columns, self.dtype, seed, "normal", 0.0, sqrt(2 / (self.dim + layer.columns)))
        return Computed(law, (), 0, self.dim, layer.columns * self._item_bytes)

    @property
    def _item_bytes(self) -> int:
        return BY_SAFETENSORS[self.dtype].item_bytes

    def _item(self, layer: Linear, component: str, part: str, shape: tuple[int, ...], extent: Extent) -> Item:
        return Item(
            name=adapter_name(layer.module, component, part),
            index=layer.index,
            stack=layer.stack,
            dtype=self.dtype,
            shape=shape,
            extents=(extent,),
        )
