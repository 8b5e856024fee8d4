"""A model's linear layers as Megatron has them, fused ones included, and the HF modules that each is made of."""

from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoints.extents import StoredTensor
from ..mapping.bindings import Binding, Model, bindings
from ..mapping.blocks import Address
from ..mapping.layouts import RowBlock
from .base_tensors import BaseTensors

_WEIGHT = ".weight"
_EMBEDDING = "embedding."
_MTP = "mtp."
_EXPERTS = ".experts.experts."
_LAYERS = "decoder.layers."
_COMPONENTS = {"linear_qkv": ("q", "k", "v"), "linear_fc1": ("gate", "up")}
"""Megatron-Bridge's canonical LoRA: what of a fused layer has an adapter of its own, in the order of its parts."""


@dataclass(frozen=True, slots=True)
class Piece:
    """An HF module that is all of a Megatron layer, or rows of it."""

    module: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A Megatron layer, or slice `index` of a stack of them: [rows, columns]."""

    module: str
    """As its key says, without `.weight`."""
    index: tuple[int, ...]
    stack: tuple[int, ...]
    rows: int
    columns: int
    pieces: tuple[Piece, ...]
    row_blocks: tuple[RowBlock, ...]
    """Its rows, from the first to the last, as rows of the pieces."""

    @property
    def address(self) -> Address:
        return Address(self.module, self.index)

    @property
    def leaf(self) -> str:
        return self.module.rpartition(".")[2]

    @property
    def is_expert(self) -> bool:
        """The last axis of its stack is that of the experts."""
        return ".experts." in self.module

    @property
    def is_mtp(self) -> bool:
        """Of multi-token prediction, which HF does not load."""
        return self.module.startswith(_MTP)

    @property
    def components(self) -> tuple[str, ...]:
        """What canonical LoRA calls its pieces; empty where it has one adapter all the same."""
        names = _COMPONENTS.get(self.leaf, ())
        return names if len(names) == len(self.pieces) else ()

    @property
    def full_name(self) -> str:
        """As Megatron's model calls the module: with its layer's number, and without the experts' second name."""
        name = self.module.replace(_EXPERTS, ".experts.")
        if self.stack and self.module.startswith(_LAYERS) and not self.module[len(_LAYERS)].isdigit():
            name = name.replace(_LAYERS, f"{_LAYERS}{self.index[0]}.", 1)
        return name

    def per_layer(self) -> Address | None:
        """Its address where each layer has a tensor of its own; None where it has that already."""
        if not self.stack or not self.module.startswith(_LAYERS) or self.module[len(_LAYERS)].isdigit():
            return None
        return Address(self.module.replace(_LAYERS, f"{_LAYERS}{self.index[0]}.", 1), self.index[1:])


def linears(model: Model) -> tuple[Linear, ...]:
    """Every layer that can carry LoRA: a matrix whose rows are those of whole HF matrices, embeddings aside."""
    return linears_among(bindings(model))


def linears_among(bound: Iterable[Binding]) -> tuple[Linear, ...]:
    """The same, of bindings at hand."""
    return tuple(_linear(binding) for binding in bound if _is_linear(binding))


def base_tensors(model: Model) -> BaseTensors:
    """What of HF's model an adapter may belong to, told by the config alone."""
    tensors = {
        part.source.name: StoredTensor(dtype="F32", shape=(*part.stack, *part.shape), item_bytes=4)
        for binding in bindings(model)
        for part in binding.parts
    }
    embedding = next((name for name in tensors if name.endswith(("embed_tokens.weight", "embeddings.weight"))), None)
    tied = model.mcore.get("share_embeddings_and_output_weights")
    return BaseTensors(
        tensors=tensors,
        tied=("lm_head.weight", embedding) if tied and embedding else None,
        turned_experts=any(binding.permutation is not None for binding in bindings(model)),
        layers=model.mcore.integer("num_layers"),
    )


def by_module(layers: Iterable[Linear]) -> dict[str, tuple[Linear, ...]]:
    """All slices of each tensor."""
    found: dict[str, list[Linear]] = {}
    for layer in layers:
        found.setdefault(layer.module, []).append(layer)
    return {module: tuple(slices) for module, slices in found.items()}


def _is_linear(binding: Binding) -> bool:
    name = binding.target.name
    if not name.endswith(_WEIGHT) or name.startswith(_EMBEDDING) or len(binding.shape) != 2 or not binding.row_blocks:
        return False
    plain = all(
        not part.stack and len(part.shape) == 2 and part.source.name.endswith(_WEIGHT) for part in binding.parts
    )
    used = [0] * len(binding.parts)
    for block in binding.row_blocks:
        used[block.part] += block.rows
    return plain and used == [part.shape[0] for part in binding.parts]


def _linear(binding: Binding) -> Linear:
    return Linear(
        module=binding.target.name.removesuffix(_WEIGHT),
        index=binding.target.index,
        stack=binding.stack,
        rows=binding.shape[0],
        columns=binding.shape[1],
        pieces=tuple(Piece(part.source.name.removesuffix(_WEIGHT), part.shape[0]) for part in binding.parts),
        row_blocks=binding.row_blocks,
    )
