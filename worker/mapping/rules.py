"""Tensor rules: which HF tensors make which Megatron tensor, and which are dropped or filled."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .layouts import Layout, Stacked
from .record import Record

When = Callable[[Record], bool]
"""A predicate on the HF config."""


def always(config: Record) -> bool:
    """The rule holds for every model of the family."""
    return True


@dataclass(frozen=True, slots=True)
class HFTensor:
    """An HF name, with `{layer}` where it repeats, and its shape as names of the family's sizes."""

    name: str
    shape: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """HF tensors <-> one Megatron tensor. Where the HF names have `{layer}` and `mcore` has not, layers are stacked."""

    hf: tuple[HFTensor, ...]
    mcore: str
    layout: Layout = field(default_factory=Stacked)
    when: When = always


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """A Megatron tensor that HF's model lacks: zeros on import; on export anything else is an error."""

    mcore: str
    shape: tuple[str, ...]
    like: str
    """The HF tensor whose dtype it takes."""
    why: str
    when: When = always


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """An HF tensor that some files carry and no model needs."""

    hf: str
    why: str
    when: When = always
