"""The copy loop: extents read into one reused buffer, digested while they are warm, written in order."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import xxhash

from ..checkpoints.extents import Extent, Literal, Permuted, Run, Strand, Weave, Zeros
from ..jobs.errors import BadInputError
from .parts import Part

BUFFER_BYTES = 2**20
"""Small and reused: larger or fresh buffers pay for page faults."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a written file and the xxh3-128 of its bytes; `label` names the tensor it belongs to."""

    offset: int
    length: int
    label: str | None
    digest: str


def copy_part(part: Part, file: Path, moved: Callable[[int], None]) -> tuple[Segment, ...]:
    """Write the part into its existing file and start its way to the disk; `moved` hears of every buffer of bytes."""
    descriptor = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
    writer = _Writer(descriptor, part.spans[0].offset, moved)
    try:
        segments = _segments(part, writer)
        _start_writeback(descriptor, part)
        return segments
    finally:
        writer.close()


def digest_part(part: Part, moved: Callable[[int], None]) -> tuple[Segment, ...]:
    """Read the part and write nothing."""
    reader = _Reader(-1, part.spans[0].offset, moved)
    try:
        return _segments(part, reader)
    finally:
        reader.close()


def _segments(part: Part, writer: "_Writer") -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for span in part.spans:
        digest = writer.digest = xxhash.xxh3_128()
        for extent in span.extents:
            writer.put(extent)
        segments.append(Segment(span.offset, span.length, span.label, digest.hexdigest()))
    writer.flush()
    return tuple(segments)


@dataclass(slots=True)
class _Writer:
    descriptor: int
    position: int
    """Where the buffer's first byte belongs."""
    moved: Callable[[int], None]
    digest: "xxhash.xxh3_128" = field(default_factory=xxhash.xxh3_128)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))
    filled: int = 0
    sources: dict[Path, int] = field(default_factory=dict[Path, int])

    def put(self, extent: Extent) -> None:
        match extent:
            case Run(path, offset, length):
                self._run(self._source(path), offset, length)
            case Weave():
                self._weave(extent)
            case Zeros(length):
                self._hole(length)
            case Literal(data):
                self._bytes(memoryview(data))
            case Permuted():
                self._bytes(permuted(extent))

    def flush(self) -> None:
        """Write what the buffer holds."""
        done = 0
        while done < self.filled:
            done += os.pwrite(self.descriptor, self.buffer[done : self.filled], self.position + done)
        self.position += self.filled
        self.moved(self.filled)
        self.filled = 0

    def close(self) -> None:
        for source in self.sources.values():
            os.close(source)
        os.close(self.descriptor)

    def _source(self, path: Path) -> int:
        if path not in self.sources:
            self.sources[path] = os.open(path, os.O_RDONLY)
        return self.sources[path]

    def _room(self, wanted: int) -> memoryview:
        """A free stretch of the buffer, as long as wanted where that fits."""
        if self.filled == BUFFER_BYTES:
            self.flush()
        return self.buffer[self.filled : min(BUFFER_BYTES, self.filled + wanted)]

    def _took(self, room: memoryview) -> None:
        self.digest.update(room)
        self.filled += len(room)

    def _run(self, source: int, offset: int, length: int) -> None:
        # Past its end a file reads like a hole: a source cut short must not become zeros.
        if os.fstat(source).st_size < offset + length:
            raise _cut_short(self._name(source), offset + length)
        for start, size, is_data in _regions(source, offset, length):
            if is_data:
                self._read(source, start, size)
            else:
                self._hole(size)

    def _read(self, source: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            room = self._room(end - offset)
            got = os.preadv(source, [room], offset)
            if got == 0:
                raise _cut_short(self._name(source), end)
            self._took(room[:got])
            offset += got

    def _hole(self, length: int) -> None:
        """Zeros are digested and skipped: the file was made of zeros, and stays sparse there."""
        self.flush()
        for start in range(0, length, BUFFER_BYTES):
            self.digest.update(_ZEROS[: min(BUFFER_BYTES, length - start)])
            self.moved(min(BUFFER_BYTES, length - start))
        self.position += length

    def _bytes(self, data: memoryview) -> None:
        while data:
            room = self._room(len(data))
            room[:] = data[: len(room)]
            data = data[len(room) :]
            self._took(room)

    def _weave(self, weave: Weave) -> None:
        """As many rows at once as a buffer takes; a row longer than that goes strand by strand."""
        row_bytes = weave.length // weave.rows
        rows = BUFFER_BYTES // row_bytes
        for first in range(0, weave.rows, max(rows, 1)):
            strands = tuple(strand.after(first) for strand in weave.strands)
            if rows == 0:
                for strand in strands:
                    self._read(self._source(strand.path), strand.offset, strand.row_bytes)
            else:
                self._woven_rows(strands, min(rows, weave.rows - first), row_bytes)

    def _woven_rows(self, strands: tuple[Strand, ...], rows: int, row_bytes: int) -> None:
        import numpy as np  # 0.1 s to import; only checkpoints with column cuts need it

        if self.filled + rows * row_bytes > BUFFER_BYTES:
            self.flush()
        room = self._room(rows * row_bytes)
        woven = np.frombuffer(room, np.uint8).reshape(rows, row_bytes)
        column = 0
        for strand in strands:
            cut = self.scratch[: rows * strand.row_bytes]
            self._read_whole(self._source(strand.path), cut, strand.offset)
            woven[:, column : column + strand.row_bytes] = np.frombuffer(cut, np.uint8).reshape(rows, -1)
            column += strand.row_bytes
        self._took(room)

    def _read_whole(self, source: int, room: memoryview, offset: int) -> None:
        while room:
            got = os.preadv(source, [room], offset)
            if got == 0:
                raise _cut_short(self._name(source), offset + len(room))
            room, offset = room[got:], offset + got

    def _name(self, source: int) -> Path:
        return next(path for path, descriptor in self.sources.items() if descriptor == source)


class _Reader(_Writer):
    """Passes the same bytes through the same digests."""

    __slots__ = ()

    def flush(self) -> None:
        self.position += self.filled
        self.moved(self.filled)
        self.filled = 0

    def close(self) -> None:
        for source in self.sources.values():
            os.close(source)


def permuted(extent: Permuted) -> memoryview:
    """The bytes of a permuted extent; of one row of the result after the other."""
    import numpy as np

    elements = np.frombuffer(b"".join(map(read_extent, extent.extents)), np.dtype(f"V{extent.item_bytes}"))
    ordered = np.ascontiguousarray(elements.reshape(extent.shape).transpose(extent.axes))
    return memoryview(ordered.view(np.uint8).reshape(-1))


def read_extent(extent: Extent) -> bytes:
    """All bytes of an extent: for small ones."""
    match extent:
        case Run(path, offset, length):
            return _pread(path, offset, length)
        case Weave(rows, strands):
            cuts = [_pread(strand.path, strand.offset, rows * strand.row_bytes) for strand in strands]
            widths = [strand.row_bytes for strand in strands]
            return b"".join(
                cut[row * width : (row + 1) * width]
                for row in range(rows)
                for cut, width in zip(cuts, widths, strict=True)
            )
        case Zeros(length):
            return bytes(length)
        case Literal(data):
            return data
        case Permuted():
            return bytes(permuted(extent))


def same_bytes(one: Iterable[Extent], other: Iterable[Extent]) -> bool:
    """Whether two lists of extents hold the same bytes; read a buffer at a time."""
    return all(a == b for a, b in zip_longest(_buffers(one), _buffers(other)))


def _buffers(extents: Iterable[Extent]) -> Iterator[bytes]:
    for extent in extents:
        if isinstance(extent, Run):
            for start in range(0, extent.length, BUFFER_BYTES):
                yield _pread(extent.path, extent.offset + start, min(BUFFER_BYTES, extent.length - start))
        else:
            yield read_extent(extent)


def _pread(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) < length:
        raise _cut_short(path, offset + length)
    return data


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ZEROS = bytes(BUFFER_BYTES)
_SYNC_FILE_RANGE_WRITE = 2


def _start_writeback(descriptor: int, part: Part) -> None:
    """A hint: the disk works while the next part is copied, and the sync at the end finds little left."""
    if hasattr(_LIBC, "sync_file_range"):
        _LIBC.sync_file_range(
            descriptor,
            ctypes.c_int64(part.spans[0].offset),
            ctypes.c_int64(part.bytes),
            ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
        )


_LIBC = ctypes.CDLL(None)


def _regions(source: int, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(start, size, is data): the holes of a sparse file need not be read."""
    end = offset + length
    while offset < end:
        data = min(end, _seek(source, offset, os.SEEK_DATA, end))
        if data > offset:
            yield offset, data - offset, False
        if data < end:
            offset = min(end, _seek(source, data, os.SEEK_HOLE, end))
            yield data, offset - data, True
        else:
            offset = end


def _seek(source: int, offset: int, whence: int, end: int) -> int:
    try:
        return os.lseek(source, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data after offset
            return end
        raise


def _cut_short(path: Path, end: int) -> BadInputError:
    return BadInputError(
        "source_changed",
        f"source file {path}",
        found="its end before the bytes that its header promised",
        expected=f"at least {end} bytes, as when the job was planned",
        next_step="Something changed it while it was read. Wait until it is complete, then submit the job again.",
    )
