"""A global tensor cut into boxes, each somewhere in a file: which bytes hold which rows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Protocol

from .extents import Extent, Run, StoredTensor, Strand, Weave, flat_index
from .refusal import bad_checkpoint


class Box(Protocol):
    """A box of a global tensor, its own rows one after the other."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where it begins, on every axis."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """How far it reaches, on every axis."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling[B: Box]:
    """One tensor and the boxes that should tile it."""

    name: str
    origin: Path
    """The checkpoint, for errors."""
    tensor: StoredTensor
    boxes: Sequence[B]
    locate: Callable[[B], tuple[Path, int]]
    """The file that holds a box, and the offset of the box's first byte there."""
    slices: dict[int, dict[tuple[int, ...], list[B]]] = field(
        default_factory=dict[int, dict[tuple[int, ...], list[B]]], repr=False
    )
    """By number of stack axes: the boxes of each slice, sorted out once."""

    def rows(self, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of the tensor, or of slice `index` of a stack, however its boxes are cut."""
        lead = len(index)
        cuts = [
            (box, max(start, box.offsets[lead]), min(start + rows, box.offsets[lead] + box.sizes[lead]))
            for box in self.boxes_of(index)
        ]
        cuts = [cut for cut in cuts if cut[1] < cut[2]]
        edges = sorted({start, start + rows, *(edge for _, low, high in cuts for edge in (low, high))})
        return tuple(
            self._band(index, low, high, [box for box, a, b in cuts if a <= low and high <= b])
            for low, high in pairwise(edges)
        )

    def boxes_of(self, index: tuple[int, ...]) -> list[B]:
        """Those that reach into slice `index` of a stack; all of them of index ()."""
        lead = len(index)
        if lead not in self.slices:
            self.slices[lead] = _by_slice(self.boxes, lead)
        return self.slices[lead].get(index, [])

    def _band(self, index: tuple[int, ...], low: int, high: int, boxes: list[B]) -> Run | Weave:
        """Rows low..high, across which no box begins or ends: one run, or strands side by side."""
        column, shape = len(index) + 1, self.tensor.shape
        width = shape[column] if len(shape) > column else 1
        reached = 0
        strands: list[Strand] = []
        for box in sorted(boxes, key=lambda box: box.offsets[column:]):
            begin, size = (box.offsets[column], box.sizes[column]) if len(shape) > column else (0, 1)
            if begin != reached or box.sizes[column + 1 :] != shape[column + 1 :]:
                break
            reached += size
            strands.append(self._strand(box, index, low))
        if reached != width or len(strands) != len(boxes):
            found = f"chunks of tensor {self.name!r} that do not tile rows {low} to {high}"
            raise bad_checkpoint(self.origin, found, "exact tiling")
        if len(strands) == 1:
            return Run(strands[0].path, strands[0].offset, (high - low) * strands[0].row_bytes)
        return Weave(high - low, tuple(strands))

    def _strand(self, box: B, index: tuple[int, ...], low: int) -> Strand:
        lead = len(index)
        row_bytes = prod(box.sizes[lead + 1 :]) * self.tensor.item_bytes
        inside = tuple(place - offset for place, offset in zip(index, box.offsets, strict=False))
        rows_before = flat_index(inside, box.sizes[:lead]) * box.sizes[lead] + low - box.offsets[lead]
        path, offset = self.locate(box)
        return Strand(path, offset + rows_before * row_bytes, row_bytes)


def _by_slice[B: Box](boxes: Iterable[B], lead: int) -> dict[tuple[int, ...], list[B]]:
    """Every slice of the first `lead` axes with the boxes that reach into it."""
    slices: defaultdict[tuple[int, ...], list[B]] = defaultdict(list)
    for box in boxes:
        axes = zip(box.offsets[:lead], box.sizes[:lead], strict=True)
        for index in product(*(range(offset, offset + size) for offset, size in axes)):
            slices[index].append(box)
    return slices
