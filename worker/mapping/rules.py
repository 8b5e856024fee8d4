"""Tensor rules: which HF tensors make which Megatron tensor, and which are dropped or filled."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .layer_sets import Layers, every_layer
from .layouts import Layout, Shape, Stacked
from .record import Record

When = Callable[[Record], bool]
"""A predicate on the HF config."""


def always(config: Record) -> bool:
    """The rule holds for every model of the family."""
    return True


@dataclass(frozen=True, slots=True)
class HFTensor:
    """An HF name, with `{layer}` and `{expert}` where it repeats, and its shape in the family's sizes.

    With `stacked`, HF itself keeps that many slices of this shape in one tensor, along its first axis: the experts.
    """

    name: str
    shape: Shape
    stacked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """HF tensors <-> one Megatron tensor, for each of `layers` and for each expert.

    `mcore` is written with `{layer}`; where Megatron stacks its layers, or experts, the planner makes it a slice.
    """

    hf: tuple[HFTensor, ...]
    mcore: str
    layout: Layout = field(default_factory=Stacked)
    layers: Layers = every_layer
    shape: Shape | None = None
    """Megatron's, where it is not the rows of the layout by the rest of HF's shape."""
    when: When = always


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """A Megatron tensor that HF's model lacks: zeros on import; on export anything else is an error."""

    mcore: str
    shape: Shape
    like: str
    """The HF tensor whose dtype it takes."""
    why: str
    layers: Layers = every_layer
    when: When = always


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """An HF tensor that some files carry and no model needs; `{layer}` and `{expert}` stand for any number."""

    hf: str
    why: str
    when: When = always


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """An HF tensor that repeats another: checked on import where it is there, written again on export."""

    hf: str
    of: str
    layers: Layers = every_layer
    when: When = always
