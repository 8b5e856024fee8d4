"""How the rows of one Megatron tensor are made of rows of HF tensors; invertible, since every row has one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Sizes = Mapping[str, int]
"""Named sizes of one model: `hidden`, `q_rows`, `groups`, ..."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """`rows` rows of the rule's HF tensor number `part`, from row `start`."""

    part: int
    start: int
    rows: int


class Layout(Protocol):
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
