"""A Megatron adapter checkpoint: its tensors by the layers that they belong to, every one of them accounted for."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.torch_dist import TorchDistFolder
from ..jobs.errors import BadInputError
from ..mapping.blocks import Address, Left
from .linears import Linear
from .mcore_config import McoreAdapterConfig

ADAPTER = ".adapter."
LINEAR_IN, LINEAR_OUT, MAGNITUDE = "linear_in.weight", "linear_out.weight", "weight_magnitude"
_NAME = re.compile(
    rf"(?P<module>.+){re.escape(ADAPTER)}(adapter_(?P<component>q|k|v|gate|up)\.)?"
    rf"(?P<part>{re.escape(LINEAR_IN)}|{re.escape(LINEAR_OUT)}|{MAGNITUDE})"
)
_STATE = re.compile(r"(^|\.)(optimizer|opt_param_scheduler|rng_state|rerun_state_machine_state)(\.|$)")
_LATER = "multi-token prediction, which HF's model does not load"
FLOATS = ("BF16", "F16", "F32")


def adapter_name(module: str, component: str, part: str) -> str:
    """`<module>.adapter.linear_in.weight`, or `<module>.adapter.adapter_q.linear_in.weight`."""
    return f"{module}{ADAPTER}{f'adapter_{component}.' if component else ''}{part}"


@dataclass(frozen=True, slots=True, kw_only=True)
class McoreFactors:
    """One pair of factors of a layer, or of a component of it."""

    a: Address
    """[rank, columns]"""
    b: Address
    """[rows, rank]"""
    rank: int
    magnitude: Address | None = None
    """DoRA's, [rows]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedLinear:
    """A layer with its factors: one pair under "", or one for each component that has any."""

    layer: Linear
    factors: Mapping[str, McoreFactors]

    @property
    def names(self) -> tuple[str, ...]:
        """Of its tensors."""
        of = (address for one in self.factors.values() for address in (one.a, one.b, one.magnitude))
        return tuple(address.name for address in of if address is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class McoreAdapter:
    """All factors of a checkpoint."""

    layers: tuple[AdaptedLinear, ...]
    left: tuple[Left, ...]
    """Tensors that have no part in what is made of the others, and why they stay behind."""

    def as_hf_loads_it(self) -> "McoreAdapter":
        """Without the layers of multi-token prediction."""
        later = (adapted for adapted in self.layers if adapted.layer.is_mtp)
        names = dict.fromkeys(name for adapted in later for name in adapted.names)
        return McoreAdapter(
            layers=tuple(adapted for adapted in self.layers if not adapted.layer.is_mtp),
            left=(*self.left, *(Left(name=name, why=_LATER) for name in names)),
        )


def find_factors(
    weights: TorchDistFolder, config: McoreAdapterConfig, layers: tuple[Linear, ...], base: frozenset[str]
) -> McoreAdapter:
    """BadInputError where a tensor belongs to no layer, a shape is another's, or factors are missing.

    `base` names the tensors of the adapted model, which a run may have saved beside the adapter's.
    """
    finding = _Finding(weights, config)
    adapted = tuple(finding.adapted(layers))
    left = tuple(finding.left(base))
    if not adapted:
        raise _unknown(weights.folder, "*", "no factors at all", "tensors named `<layer>.adapter.linear_in.weight`")
    return McoreAdapter(layers=adapted, left=left)


@dataclass(slots=True)
class _Finding:
    weights: TorchDistFolder
    config: McoreAdapterConfig
    used: set[str] = field(default_factory=set[str])

    def adapted(self, layers: tuple[Linear, ...]) -> Iterator[AdaptedLinear]:
        for layer in layers:
            wanted = self.config.targets(layer)
            factors = dict(self._factors(layer, wanted=wanted))
            if factors:
                yield AdaptedLinear(layer=layer, factors=factors)
            elif wanted and not layer.is_mtp:
                raise self._missing(layer, self._absence(layer, ""))

    def left(self, base: frozenset[str]) -> Iterator[Left]:
        """What is no factor of any layer."""
        for name in self.weights.tensors:
            if name in self.used:
                continue
            if _STATE.search(name):
                yield Left(name=name, why="a trainer's state, not the adapter's")
            elif ADAPTER not in name and name in base:
                yield Left(name=name, why="the base's own; an adapter leaves it as it is")
            elif _NAME.fullmatch(name):
                raise _unknown(
                    self.weights.folder, name, "no layer for it in the base's config", "factors of its linear layers"
                )
            else:
                raise _unknown(self.weights.folder, name, "a name that is not known", "names as Megatron-Bridge's")

    def _factors(self, layer: Linear, *, wanted: bool) -> Iterator[tuple[str, McoreFactors]]:
        for component in ("", *layer.components):
            expected = wanted and self._expects(layer, component)
            found = self._pair(layer, component)
            if found is not None:
                yield component, found
            elif expected and not layer.is_mtp:
                raise self._missing(layer, self._absence(layer, component))

    def _expects(self, layer: Linear, component: str) -> bool:
        if self.config.type == "canonical_lora" and layer.components:
            return component != "" and self.config.targets_part(layer, component)
        return component == ""

    def _pair(self, layer: Linear, component: str) -> McoreFactors | None:
        rows = layer.rows
        if component:
            rows = layer.pieces[layer.components.index(component)].rows
        a = self._find(layer, component, LINEAR_IN, 2)
        b = self._find(layer, component, LINEAR_OUT, 2)
        magnitude = self._find(layer, component, MAGNITUDE, 1)
        if a is None and b is None and magnitude is None:
            return None
        if a is None or b is None or (magnitude is None) != (self.config.type != "dora"):
            found = [name for name, part in (("A", a), ("B", b), ("a magnitude", magnitude)) if part is not None]
            raise self._missing(layer, f"{' and '.join(found)} alone, with type {self.config.type!r}")
        rank = self._rank(layer, a)
        self._check(a, (rank, layer.columns))
        self._check(b, (rows, rank), longer=layer.module == "output_layer")
        if magnitude is not None:
            self._check(magnitude, (rows,))
        return McoreFactors(a=a, b=b, rank=rank, magnitude=magnitude)

    def _find(self, layer: Linear, component: str, part: str, axes: int) -> Address | None:
        """Where a part of a layer's factors lies: in a stack, layer by layer, or for all experts alike."""
        for address, stack in _places(layer):
            name = adapter_name(address.name, component, part)
            tensor = self.weights.tensors.get(name)
            if tensor is not None and len(tensor.shape) == len(stack) + axes and tensor.shape[: len(stack)] == stack:
                self.used.add(name)
                return Address(name, address.index)
        return None

    def _rank(self, layer: Linear, a: Address) -> int:
        rank = self._slice(a)[0]
        reduced = self.config.normalize_moe_lora and layer.is_expert
        if rank != self.config.dim and not reduced:
            raise self._bad(a, f"rank {rank}", f"dim {self.config.dim} of its config")
        return rank

    def _check(self, address: Address, expected: tuple[int, ...], *, longer: bool = False) -> None:
        tensor, found = self.weights.tensors[address.name], self._slice(address)
        if tensor.dtype not in FLOATS:
            raise self._bad(address, f"dtype {tensor.dtype}", " or ".join(FLOATS))
        padded = longer and found[1:] == expected[1:] and found[0] > expected[0]
        if found != expected and not padded:
            raise self._bad(address, f"shape {list(found)}", f"{list(expected)} by the base's config")

    def _slice(self, address: Address) -> tuple[int, ...]:
        return self.weights.tensors[address.name].shape[len(address.index) :]

    def _bad(self, address: Address, found: str, expected: str) -> BadInputError:
        return BadInputError(
            "bad_tensor",
            f"adapter {self.weights.folder}: tensor '{address}'",
            found=found,
            expected=expected,
            next_step="Check that the adapter, its config and its base belong together.",
        )

    def _absence(self, layer: Linear, component: str) -> str:
        name = adapter_name(layer.module, component, LINEAR_IN)
        tensor = self.weights.tensors.get(name)
        if tensor is None:
            return f"no tensor {name!r}"
        return f"tensor {name!r} of shape {list(tensor.shape)}, while the base has a stack of {list(layer.stack)}"

    def _missing(self, layer: Linear, found: str) -> BadInputError:
        return BadInputError(
            "missing_tensor",
            f"adapter {self.weights.folder}: layer '{layer.address}'",
            found=found,
            expected="both factors (and with DoRA a magnitude), since its config targets the layer",
            next_step="Check that the adapter is whole, and its target_modules.",
        )


def _places(layer: Linear) -> Iterator[tuple[Address, tuple[int, ...]]]:
    """Where a layer's factors may lie, and the stack's axes there; last those of all experts in one."""
    stacked = [(layer.address, layer.stack)]
    alone = layer.per_layer()
    if alone is not None:
        stacked.append((alone, layer.stack[1:]))
    yield from stacked
    if layer.is_expert:
        yield from ((Address(address.name, address.index[:-1]), stack[:-1]) for address, stack in stacked)


def _unknown(folder: Path, name: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "unknown_tensor",
        f"adapter {folder}: tensor {name!r}",
        found=found,
        expected=expected,
        next_step="Check that the adapter belongs to this base; nothing of it is left out.",
    )
