"""The copy loop: extents read into one reused buffer, digested while they are warm, written in order.

Where the file system can let both files have the same blocks, these are read for their digest and not written.
"""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from ..checkpoints.extents import Computed, Extent, Literal, Permuted, Run, Strand, Weave, Zeros
from ..checkpoints.sharing import share, whole_blocks
from .parts import Part
from .reading import BUFFER_BYTES, SourceFiles, cut_short
from .write_behind import begin_writing

if TYPE_CHECKING:
    from .arithmetic import Bytes

_SENT_BYTES = 8 * 2**20
"""What the kernel is asked to write at once; whole pages, so that none is changed while it is on its way."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a written file and the xxh3-128 of its bytes; `label` names the tensor it belongs to."""

    offset: int
    length: int
    label: str | None
    digest: str


def copy_part(part: Part, file: Path, moved: Callable[[int], None], sources: SourceFiles) -> tuple[Segment, ...]:
    """Write the part into its existing file; `moved` hears of every buffer of bytes.

    It hears of it after the buffer was read and before it is written: what it raises keeps the bytes from the file.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
    writer = _Writer(descriptor, part.spans[0].offset, moved, sources)
    try:
        return _segments(part, writer)
    finally:
        writer.close()


def digest_part(part: Part, moved: Callable[[int], None], sources: SourceFiles) -> tuple[Segment, ...]:
    """Read the part and write nothing."""
    reader = _Reader(-1, part.spans[0].offset, moved, sources)
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
    sources: SourceFiles
    digest: "xxhash.xxh3_128" = field(default_factory=xxhash.xxh3_128)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(BUFFER_BYTES)))
    filled: int = 0
    sent: int = field(init=False)
    """Until here the kernel was asked to begin writing to the disk."""

    def __post_init__(self) -> None:
        self.sent = self.position

    def put(self, extent: Extent) -> None:
        match extent:
            case Run(path, offset, length):
                self._run(path, offset, length)
            case Weave():
                self._weave(extent)
            case Zeros(length):
                self._hole(length)
            case Literal(data):
                self._bytes(memoryview(data))
            case Permuted():
                self._large(self.sources.permuted(extent))
            case Computed():
                for piece in self.sources.computed(extent):
                    self._large(piece)

    def flush(self) -> None:
        """Write what the buffer holds."""
        self._write(self.buffer[: self.filled])
        self.filled = 0

    def close(self) -> None:
        os.close(self.descriptor)

    def _write(self, data: memoryview) -> None:
        self.moved(len(data))
        self._store(data)

    def _store(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self.descriptor, data, self.position)
            self.position += written
            data = data[written:]
        self._send()

    def _send(self) -> None:
        """Let the disk work while the next bytes are made: else it would begin when all is to be synced."""
        end = self.position // _SENT_BYTES * _SENT_BYTES
        if end > self.sent:
            begin_writing(self.descriptor, self.sent, end - self.sent)
            self.sent = end

    def _room(self, wanted: int) -> memoryview:
        """A free stretch of the buffer, as long as wanted where that fits."""
        if self.filled == BUFFER_BYTES:
            self.flush()
        return self.buffer[self.filled : min(BUFFER_BYTES, self.filled + wanted)]

    def _took(self, room: memoryview) -> None:
        self.digest.update(room)
        self.filled += len(room)

    def _run(self, path: Path, offset: int, length: int) -> None:
        source = self.sources.open(path)
        status = os.fstat(source)
        # Past its end a file reads like a hole: a source cut short must not become zeros.
        if status.st_size < offset + length:
            raise cut_short(path, offset + length)
        # Some file systems look at every page to find a hole (tmpfs): not where there can be none.
        sparse = status.st_blocks * 512 < status.st_size
        for start, size, is_data in _regions(source, offset, length) if sparse else ((offset, length, True),):
            if is_data:
                self._data(path, source, start, size)
            else:
                self._hole(size)

    def _data(self, path: Path, source: int, offset: int, length: int) -> None:
        head, length_shared = whole_blocks(offset, self.position + self.filled, length)
        devices = (os.fstat(source).st_dev, os.fstat(self.descriptor).st_dev) if length_shared else (0, 0)
        if not length_shared or devices in self.sources.unshared:
            self._read(path, source, offset, length)
            return
        self._read(path, source, offset, head)
        done = head + self._share(path, source, offset + head, length_shared)
        if done < head + length_shared:
            self.sources.unshared.add(devices)
        self._read(path, source, offset + done, length - done)

    def _share(self, path: Path, source: int, offset: int, length: int) -> int:
        """How much was done, the last buffer of it by writing where it could not be shared."""
        self.flush()
        for start in range(0, length, BUFFER_BYTES):
            room = self.buffer[: min(BUFFER_BYTES, length - start)]
            self.sources.fill(path, room, offset + start)
            self.digest.update(room)
            self.moved(len(room))
            if not share(self.descriptor, self.position, source, offset + start, len(room)):
                self._store(room)
                return start + len(room)
            self.position += len(room)
        return length

    def _read(self, path: Path, source: int, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            room = self._room(end - offset)
            got = os.preadv(source, [room], offset)
            if got == 0:
                raise cut_short(path, end)
            self._took(room[:got])
            offset += got

    def _hole(self, length: int) -> None:
        """Zeros are digested and skipped: the file was made of zeros, and stays sparse there."""
        self.flush()
        for start in range(0, length, BUFFER_BYTES):
            self.digest.update(_ZEROS[: min(BUFFER_BYTES, length - start)])
            self.moved(min(BUFFER_BYTES, length - start))
        self.position += length

    def _large(self, data: "Bytes") -> None:
        """Not by way of the buffer, unless little."""
        view = memoryview(data)
        if len(view) < BUFFER_BYTES // 4:
            self._bytes(view)
        else:
            self.flush()
            self.digest.update(view)
            self._write(view)

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
                    self._read(strand.path, self.sources.open(strand.path), strand.offset, strand.row_bytes)
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
            self.sources.fill(strand.path, cut, strand.offset)
            woven[:, column : column + strand.row_bytes] = np.frombuffer(cut, np.uint8).reshape(rows, -1)
            column += strand.row_bytes
        self._took(room)


class _Reader(_Writer):
    """Passes the same bytes through the same digests."""

    __slots__ = ()

    def _data(self, path: Path, source: int, offset: int, length: int) -> None:
        self._read(path, source, offset, length)

    def _write(self, data: memoryview) -> None:
        self.moved(len(data))
        self.position += len(data)

    def close(self) -> None:
        pass


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ZEROS = bytes(BUFFER_BYTES)


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
