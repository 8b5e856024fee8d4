"""Blocks: where the rows of one tensor come from, as addresses; what a plan is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class TensorInfo(Protocol):
    """What a checkpoint's header says of a tensor; `dtype` in safetensors' spelling."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Address:
    """A tensor, or slice `index` of a stack of tensors: by layer, by expert, or by both."""

    name: str
    index: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}[{','.join(map(str, self.index))}]" if self.index else self.name


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` rows of `source`, from row `start`."""

    source: Address
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Permutation:
    """A tensor's elements read as `shape`, then its axes put in the order `axes`: numpy's reshape and transpose."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def inverse(self) -> "Permutation":
        """The way back."""
        back = tuple(self.axes.index(axis) for axis in range(len(self.axes)))
        return Permutation(tuple(self.shape[axis] for axis in self.axes), back)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One tensor to write: its rows are those of `blocks`, in order; no blocks means zeros."""

    target: Address
    dtype: str
    shape: tuple[int, ...]
    """Of the slice, without the stack's axes."""
    stack: tuple[int, ...] = ()
    """The stack's axes; empty where the target is no stack."""
    blocks: tuple[Block, ...]
    permutation: Permutation | None = None
    """What becomes of the rows of `blocks`, taken together, where they are not copied as they are."""
    padding_rows: int = 0
    """Rows of zeros after those; counted in `shape`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A tensor that is not carried over, or is made of nothing, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All tasks of a job, checked: every source row is used once, every target tensor is tiled."""

    tasks: tuple[Task, ...]
    dropped: tuple[Left, ...] = ()
    filled: tuple[Left, ...] = ()
    must_be_equal: tuple[tuple[str, str], ...] = ()
    """Source tensors of which one is left out since it repeats the other, or the plan does not hold."""
    must_be_zero: tuple[Block, ...] = ()
    """Source rows that have no place in the target: they carry nothing, or the plan does not hold."""
