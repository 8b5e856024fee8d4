"""Extents read into memory: whole ones where they are small, stretches of long ones."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.extents import Computed, Extent, Literal, Permuted, Run, Weave, Zeros
from ..checkpoints.operations import band_rows
from ..jobs.errors import BadInputError
from .computed import PIECE_BYTES, on_cpu, pieces

if TYPE_CHECKING:
    from .arithmetic import Arithmetic, Bytes

BUFFER_BYTES = 2**20
"""Small and reused: larger or fresh buffers pay for page faults."""

_MOST_OPEN = 256
"""A checkpoint of many ranks has thousands of files, and a process may open 1,024."""


@dataclass(slots=True)
class SourceFiles:
    """Files that are read, opened once."""

    arithmetic: "Callable[[], Arithmetic]" = on_cpu
    piece_bytes: int = PIECE_BYTES
    unshared: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    """Devices of a source and a target between which blocks cannot be shared, as was found."""
    _descriptors: dict[Path, int] = field(default_factory=dict[Path, int])
    _rooms: "dict[int, Bytes]" = field(default_factory=dict[int, "Bytes"])
    _last: "tuple[Extent, Bytes] | None" = None
    """The last extent that had to be made whole, for whoever reads it stretch by stretch."""

    def open(self, path: Path) -> int:
        """Its descriptor."""
        if path not in self._descriptors:
            if len(self._descriptors) == _MOST_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]

    def close(self) -> None:
        """Close them all."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def fill(self, path: Path, room: "memoryview | Bytes", offset: int) -> None:
        """Read as many bytes as `room` takes. BadInputError where the file ends before."""
        descriptor, view = self.open(path), memoryview(room)
        while view:
            got = os.preadv(descriptor, [view], offset)
            if got == 0:
                raise cut_short(path, offset + len(view))
            view, offset = view[got:], offset + got

    def computed(self, extent: Computed) -> "Iterator[Bytes]":
        """Its bytes, some rows at a time."""
        return pieces(extent, self._for_operand, self.arithmetic(), self.piece_bytes)

    def whole(self, extent: Extent) -> "Bytes":
        """All bytes of an extent."""
        return self.stretch(extent, 0, extent.length)

    def stretch(self, extent: Extent, start: int, length: int) -> "Bytes":
        """`length` bytes of an extent from its byte `start`."""
        import numpy as np  # 0.1 s to import; only weaves, permutations and arithmetic need it

        match extent:
            case Run(path, offset, _):
                data = np.empty(length, np.uint8)
                self.fill(path, data, offset + start)
                return data
            case Zeros():
                return np.zeros(length, np.uint8)
            case Literal(data=text):
                return np.frombuffer(text, np.uint8)[start : start + length]
            case Weave():
                return self._weave(extent, start, length)
            case Permuted():
                return self._made(extent)[start : start + length]
            case Computed():
                return self._rows(extent, start, length)

    def anew(self, extent: Extent, start: int, length: int, _number: int) -> "Bytes":
        """A stretch, in memory of its own, whichever operand it is for."""
        return self.stretch(extent, start, length)

    def _for_operand(self, extent: Extent, start: int, length: int, number: int) -> "Bytes":
        """A stretch, in memory that is used again for the same operand's next."""
        import numpy as np

        if not isinstance(extent, Run):
            return self.stretch(extent, start, length)
        room = self._rooms.get(number)
        if room is None or room.size < length:
            room = self._rooms[number] = np.empty(length, np.uint8)
        self.fill(extent.path, room[:length], extent.offset + start)
        return room[:length]

    def permuted(self, extent: Permuted) -> "Bytes":
        """Of one row of the result after the other."""
        import numpy as np

        read = [self.whole(inner) for inner in extent.extents]
        elements = (read[0] if len(read) == 1 else np.concatenate(read)).view(np.dtype(f"V{extent.item_bytes}"))
        ordered = np.ascontiguousarray(elements.reshape(extent.shape).transpose(extent.axes))
        return ordered.reshape(-1).view(np.uint8)

    def _made(self, extent: Permuted) -> "Bytes":
        if self._last is None or self._last[0] is not extent:
            self._last = extent, self.permuted(extent)
        return self._last[1]

    def _rows(self, extent: Computed, start: int, length: int) -> "Bytes":
        """Of the rows, and bands of rows, that hold what is wanted, and of no others."""
        import numpy as np

        band = band_rows(extent.operation)
        first, end = start // extent.row_bytes, -(-(start + length) // extent.row_bytes)
        low = max(extent.first, (extent.first + first) // band * band)
        high = min(extent.first + extent.rows, -(-(extent.first + end) // band) * band)
        wanted = replace(extent, first=low, rows=high - low)
        # Of an operand of what is being computed: its own operands may not take the other's memory.
        made = [piece.copy() for piece in pieces(wanted, self.anew, self.arithmetic(), self.piece_bytes)]
        return np.concatenate(made)[start - (low - extent.first) * extent.row_bytes :][:length]

    def _weave(self, weave: Weave, start: int, length: int) -> "Bytes":
        import numpy as np

        row_bytes = weave.length // weave.rows
        first, end = start // row_bytes, -(-(start + length) // row_bytes)
        woven = np.empty((end - first, row_bytes), np.uint8)
        column = 0
        for strand in weave.strands:
            cut = np.empty((end - first, strand.row_bytes), np.uint8)
            self.fill(strand.path, cut.reshape(-1), strand.after(first).offset)
            woven[:, column : column + strand.row_bytes] = cut
            column += strand.row_bytes
        return woven.reshape(-1)[start - first * row_bytes :][:length]


def read_extent(extent: Extent) -> bytes:
    """All bytes of an extent: for small ones."""
    files = SourceFiles()
    try:
        return files.whole(extent).tobytes()
    finally:
        files.close()


def same_bytes(one: Iterable[Extent], other: Iterable[Extent]) -> bool:
    """Whether two lists of extents hold the same bytes, wherever they are cut; read a buffer at a time."""
    files = SourceFiles()
    try:
        return all(a == b for a, b in zip_longest(_buffers(one, files), _buffers(other, files)))
    finally:
        files.close()


def _buffers(extents: Iterable[Extent], files: SourceFiles) -> Iterator[bytes]:
    """All of one size but the last."""
    read = bytearray()
    for extent in extents:
        for start in range(0, extent.length, BUFFER_BYTES):
            read += files.stretch(extent, start, min(BUFFER_BYTES, extent.length - start)).tobytes()
            if len(read) >= BUFFER_BYTES:
                yield bytes(read[:BUFFER_BYTES])
                del read[:BUFFER_BYTES]
    if read:
        yield bytes(read)


def cut_short(path: Path, end: int) -> BadInputError:
    """A source that ends too early."""
    return BadInputError(
        "source_changed",
        f"source file {path}",
        found="its end before the bytes that its header promised",
        expected=f"at least {end} bytes, as when the job was planned",
        next_step="Something changed it while it was read. Wait until it is complete, then submit the job again.",
    )
