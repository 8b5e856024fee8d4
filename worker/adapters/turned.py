"""Factors of experts that HF keeps the other way round: [in, out], with the outputs in an order of their own."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..checkpoints.extents import Extent, Operand, Permuted
from ..checkpoints.operations import Factors
from ..checkpoints.torch_dist import TorchDistFolder
from ..mapping.bindings import Binding, Model, bindings
from ..mapping.blocks import Address, Permutation
from .linears import Linear, Piece
from .matching import Pair
from .mcore_config import McoreAdapterConfig
from .mcore_folder import AdaptedLinear, McoreAdapter, McoreFactors

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedLinears:
    """Megatron layers whose HF tensors are permuted ones, and how."""

    layers: tuple[Linear, ...]
    sources: dict[Address, tuple[Address, Permutation]]
    """By the layer's address: the HF tensor, and what makes Megatron's of it."""

    @classmethod
    def of(cls, model: Model) -> "TurnedLinears":
        """Those of the model; gpt-oss has some."""
        found = {_linear(binding): binding for binding in bindings(model) if _is_turned(binding)}
        sources = {
            layer.address: (binding.parts[0].source, binding.permutation)
            for layer, binding in found.items()
            if binding.permutation is not None
        }
        return cls(layers=tuple(found), sources=sources)

    def apart(self, adapter: McoreAdapter) -> tuple[McoreAdapter, tuple[AdaptedLinear, ...]]:
        """What adapts other layers, and what adapts these."""
        turned = tuple(adapted for adapted in adapter.layers if adapted.layer.address in self.sources)
        others = tuple(adapted for adapted in adapter.layers if adapted.layer.address not in self.sources)
        return McoreAdapter(layers=others, left=adapter.left), turned

    def pairs(
        self, adapted: tuple[AdaptedLinear, ...], config: McoreAdapterConfig, weights: TorchDistFolder
    ) -> Iterator[tuple[Address, Pair]]:
        """Their factors by slice of HF's tensors: B's rows, and a magnitude's, in HF's order."""
        for one in adapted:
            address, permutation = self.sources[one.layer.address]
            for factors in one.factors.values():
                yield address, _pair(factors, permutation, config.alpha / factors.rank, weights)


def _is_turned(binding: Binding) -> bool:
    """Megatron's columns are HF's first axis."""
    permutation = binding.permutation
    if permutation is None or len(binding.shape) != 2 or not binding.target.name.endswith(_WEIGHT):
        return False
    return permutation.axes[-1] == 0 and permutation.shape[0] == binding.shape[1]


def _linear(binding: Binding) -> Linear:
    [part] = binding.parts
    return Linear(
        module=binding.target.name.removesuffix(_WEIGHT),
        index=binding.target.index,
        stack=binding.stack,
        rows=binding.shape[0],
        columns=binding.shape[1],
        pieces=(Piece(part.source.name, binding.shape[0]),),
        row_blocks=(),
    )


def _pair(factors: McoreFactors, permutation: Permutation, scale: float, weights: TorchDistFolder) -> Pair:
    a, b, magnitude = factors.a, factors.b, factors.magnitude
    rows = Permutation(permutation.shape[1:], tuple(axis - 1 for axis in permutation.axes[:-1])).inverse()
    height = weights.tensors[b.name].shape[len(b.index)]
    operands = [_operand(weights.rows(a.name, a.index, 0, factors.rank))]
    for address, inner in ((b, (factors.rank,)), *(((magnitude, ()),) if magnitude else ())):
        item_bytes = weights.tensors[address.name].item_bytes
        stored = weights.rows(address.name, address.index, 0, height)
        axes = (*rows.axes, *(len(rows.axes) + place for place in range(len(inner))))
        operands.append(_operand((Permuted(stored, (*rows.shape, *inner), axes, item_bytes),)))
    kinds = [weights.tensors[address.name].dtype for address in (a, b)]
    scaled = weights.tensors[magnitude.name].dtype if magnitude else None
    return Pair(factors=Factors(scale, factors.rank, kinds[0], kinds[1], True, scaled), operands=tuple(operands))


def _operand(extents: tuple[Extent, ...]) -> Operand:
    return Operand(extents, sum(extent.length for extent in extents), 0)
