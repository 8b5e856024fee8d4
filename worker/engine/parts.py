"""Parts: a plan's files cut into stretches of about equal size, each written by one process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

from ..checkpoints.extents import Computed, Extent, Literal, Permuted, Run, Span, TargetFile, Weave, Zeros
from ..checkpoints.operations import band_rows

SEGMENT_BYTES = 256 * 2**20
"""A tensor longer than this has one digest per segment, so that several processes can share it."""
_LEAST_PART_BYTES, _MOST_PART_BYTES = 64 * 2**20, 4 * 2**30
_PARTS_AIMED_AT = 32
_LEAST_FILE_BYTES = 256 * 2**20
_LEAST_SHARD_BYTES, _MOST_SHARD_BYTES = 1_000_000_000, 5_000_000_000
_SHARDS_AIMED_AT = 16


SHARED_BYTES = 2 * 2**30
"""Less is not worth the time of a second worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive spans of one file; none is longer than a segment."""

    file: str
    spans: tuple[Span, ...]

    @property
    def bytes(self) -> int:
        return sum(span.length for span in self.spans)


def part_bytes_for(total_bytes: int) -> int:
    """A part's size: some dozens of parts for a common model, few enough for the largest."""
    return max(_LEAST_PART_BYTES, min(_MOST_PART_BYTES, total_bytes // _PARTS_AIMED_AT))


def file_bytes_for(total_bytes: int) -> int:
    """Size of the files that a writer is free to choose: so many that processes do not wait for each other's writes.

    Linux lets one process at a time write to a file. Files far smaller than this were slower on ext4, by fits.
    """
    return max(_LEAST_FILE_BYTES, part_bytes_for(total_bytes))


def shard_bytes_for(total_bytes: int) -> int:
    """Size of HF's files: a folder of some GB in a dozen or so, none larger than HF's usual 5 GB."""
    return max(_LEAST_SHARD_BYTES, min(_MOST_SHARD_BYTES, total_bytes // _SHARDS_AIMED_AT))


def cut_parts(files: Iterable[TargetFile], part_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> tuple[Part, ...]:
    """Every span of every file in exactly one part; a file's are in its order.

    The files' take turns: whoever each take the next one write to different files, and none waits for another's lock.
    """
    by_file = (_cut_file(file, part_bytes, segment_bytes) for file in files)
    return tuple(part for turn in zip_longest(*by_file) for part in turn if part is not None)


def _cut_file(file: TargetFile, part_bytes: int, segment_bytes: int) -> Iterator[Part]:
    spans: list[Span] = []
    filled = 0
    for segment in (segment for span in file.spans for segment in split(span, segment_bytes)):
        spans.append(segment)
        filled += segment.length
        if filled >= part_bytes:
            yield Part(file=file.path, spans=tuple(spans))
            spans, filled = [], 0
    if spans:
        yield Part(file=file.path, spans=tuple(spans))


def split(span: Span, most: int) -> Iterator[Span]:
    """The span itself, or its segments of about `most` bytes; the cuts depend on the span alone."""
    if span.length <= most:
        yield span
        return
    offset = span.offset
    extents: list[Extent] = []
    room = most
    for extent in span.extents:
        rest: Extent | None = extent
        while rest is not None:
            head, rest = cut(rest, room)
            extents.append(head)
            room -= head.length
            if room <= 0:
                yield Span(offset=offset, extents=tuple(extents), label=span.label)
                offset += sum(piece.length for piece in extents)
                extents, room = [], most
    if extents:
        yield Span(offset=offset, extents=tuple(extents), label=span.label)


def cut(extent: Extent, at: int) -> tuple[Extent, Extent | None]:
    """The first `at` bytes and the rest; a weave is cut after the row that reaches `at`, what is permuted never."""
    if extent.length <= at:
        return extent, None
    match extent:
        case Run(path, offset, length):
            return Run(path, offset, at), Run(path, offset + at, length - at)
        case Zeros(length):
            return Zeros(at), Zeros(length - at)
        case Literal(data):
            return Literal(data[:at]), Literal(data[at:])
        case Weave():
            return _cut_weave(extent, at)
        case Permuted():
            return extent, None
        case Computed():
            return _cut_computed(extent, at)


def _cut_computed(extent: Computed, at: int) -> tuple[Extent, Extent | None]:
    """After the first row, or band of rows that belong together, which reaches `at`."""
    band = band_rows(extent.operation)
    rows = -(-at // extent.row_bytes)
    rows = -(-(extent.first + rows) // band) * band - extent.first
    if rows >= extent.rows:
        return extent, None
    return (
        replace(extent, rows=rows),
        replace(extent, first=extent.first + rows, rows=extent.rows - rows),
    )


def _cut_weave(weave: Weave, at: int) -> tuple[Extent, Extent | None]:
    row_bytes = weave.length // weave.rows
    rows = -(-at // row_bytes)
    if rows >= weave.rows:
        return weave, None
    return Weave(rows, weave.strands), Weave(weave.rows - rows, tuple(strand.after(rows) for strand in weave.strands))
