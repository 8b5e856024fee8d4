"""A box of a tensor, out of the chunks that a checkpoint has it in: which part of which chunk, and where that lies."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .tiling import Box, Tiling


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A part of a stored chunk that is a part of the box."""

    path: Path
    offset: int
    """Of the chunk's first byte in the file."""
    chunk: tuple[int, ...]
    """The chunk's shape."""
    inside: tuple[slice, ...]
    """The part, in the chunk."""
    target: tuple[slice, ...]
    """The part, in the box."""

    @property
    def numel(self) -> int:
        """How many elements the part has."""
        return prod(part.stop - part.start for part in self.inside)


def overlaps[B: Box](
    tiling: Tiling[B], offsets: tuple[int, ...], sizes: tuple[int, ...], stacked: int
) -> Iterator[Overlap]:
    """Of a box whose first `stacked` axes are of size 1: only chunks that reach into that slice are looked at."""
    for box in tiling.boxes_of(offsets[:stacked]):
        low = tuple(map(max, offsets, box.offsets))
        high = tuple(min(a + b, c + d) for a, b, c, d in zip(offsets, sizes, box.offsets, box.sizes, strict=True))
        if all(a < b for a, b in zip(low, high, strict=True)):
            path, offset = tiling.locate(box)
            yield Overlap(
                path=path,
                offset=offset,
                chunk=box.sizes,
                inside=_slices(low, high, box.offsets),
                target=_slices(low, high, offsets),
            )


def _slices(low: tuple[int, ...], high: tuple[int, ...], origin: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a - zero, b - zero) for a, b, zero in zip(low, high, origin, strict=True))
