"""How the rows of one Megatron tensor are made of HF tensors; invertible, since every element has one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .blocks import Permutation

Sizes = Mapping[str, int]
"""Named sizes of one model: `hidden`, `q_rows`, `groups`, ..."""

Shape = tuple[str | int, ...]
"""A shape in named sizes."""


def sized(shape: Shape, sizes: Sizes) -> tuple[int, ...]:
    """The shape in numbers."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in shape)


@dataclass(frozen=True, slots=True)
class RowBlock:
    """`rows` rows of the rule's HF tensor number `part`, from row `start`."""

    part: int
    start: int
    rows: int


class RowLayout(Protocol):
    """Names the row blocks of the Megatron tensor from its first row to its last."""

    def row_blocks(self, part_rows: tuple[int, ...], sizes: Sizes) -> tuple[RowBlock, ...]:
        """`part_rows` are the row counts of the rule's HF tensors."""
        ...


@dataclass(frozen=True, slots=True)
class Stacked:
    """a, b, ... <-> [a; b; ...]: one after the other. With one HF tensor, the tensor itself."""

    def row_blocks(self, part_rows: tuple[int, ...], sizes: Sizes) -> tuple[RowBlock, ...]:
        return tuple(RowBlock(part, 0, rows) for part, rows in enumerate(part_rows))


@dataclass(frozen=True, slots=True)
class QueryGroups:
    """q, k, v <-> [q.. k v | q.. k v | ...]: per query group its query heads, then its key and its value head."""

    def row_blocks(self, part_rows: tuple[int, ...], sizes: Sizes) -> tuple[RowBlock, ...]:
        groups = sizes["groups"]
        return tuple(
            RowBlock(part, group * (rows // groups), rows // groups)
            for group in range(groups)
            for part, rows in enumerate(part_rows)
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `start` to `start + rows` of the one HF tensor; other rules take the rest."""

    start: str | int
    rows: str | int

    def row_blocks(self, part_rows: tuple[int, ...], sizes: Sizes) -> tuple[RowBlock, ...]:
        start, rows = sized((self.start, self.rows), sizes)
        return (RowBlock(0, start, rows),)


@dataclass(frozen=True, slots=True)
class Permuted:
    """The one HF tensor read as `shape`, its axes put in the order `axes`: transposes, and gate/up taken apart.

    `Permuted(("hidden", "ffn", 2), (2, 1, 0))`: [hidden, gate up gate up ..] <-> [gate..; up..] of rows `hidden` long.
    """

    shape: Shape
    axes: tuple[int, ...]

    def permutation(self, sizes: Sizes) -> Permutation:
        """HF to Megatron, in numbers."""
        return Permutation(sized(self.shape, sizes), self.axes)


Layout = RowLayout | Permuted
