"""`torch.save` archives of one tensor or one object, byte by byte: made without torch, found without unpickling code.

A `.distcp` item is such an archive: an uncompressed zip of `data.pkl` (the pickled tensor, its storage by reference),
`data/0` (the bytes), and a few small records. Torch checks no CRC on reading, so `data/0` may carry 0.
"""

import os
import pickle
import struct
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from .dtypes import BY_SAFETENSORS, BY_TORCH, DTYPES
from .torch_pickle import Call, Global, Inert, Persistent, read_inert, write

_ALIGNMENT = 64
_BIG = 0xFFFFFFFF
_SHAPES = 1024
"""Archives kept: a model has tens of thousands of tensors, and a few dozen shapes of them."""
_DIRECTORY_TAIL_BYTES = 4096
_STORAGES = "data/"
_UNREADABLE = (
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    struct.error,
    EOFError,
    RecursionError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, slots=True)
class _Record:
    name: str
    data: bytes | None
    """None stands for the tensor's bytes, which lie elsewhere."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size: int
    crc: int
    position: int


@lru_cache(maxsize=_SHAPES)
def tensor_envelope(shape: tuple[int, ...], dtype: str, nbytes: int) -> tuple[bytes, bytes]:
    """(before, after): around `nbytes` raw bytes they make an archive that torch.load() reads as that tensor."""
    records = (
        _Record("archive/data.pkl", _tensor_pickle(shape, dtype)),
        _Record("archive/.format_version", b"1"),
        _Record("archive/.storage_alignment", str(_ALIGNMENT).encode()),
        _Record("archive/byteorder", b"little"),
        _Record("archive/data/0", None),
        _Record("archive/version", b"3\n"),
    )
    return _archive(records, nbytes)


def object_archive(value: object) -> bytes:
    """`torch.save(value)` for a value of plain containers, numbers and strings."""
    return _pickle_archive(write(value))


@lru_cache(maxsize=_SHAPES)
def _pickle_archive(pickled: bytes) -> bytes:
    records = (
        _Record("archive/data.pkl", pickled),
        _Record("archive/.format_version", b"1"),
        _Record("archive/.storage_alignment", str(_ALIGNMENT).encode()),
        _Record("archive/byteorder", b"little"),
        _Record("archive/version", b"3\n"),
    )
    before, after = _archive(records, 0)
    return before + after


def _tensor_pickle(shape: tuple[int, ...], dtype: str) -> bytes:
    kind = BY_SAFETENSORS[dtype]
    storage = Persistent(("storage", Global("torch", kind.storage), "0", "cpu", prod(shape)))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Global("collections", "OrderedDict"), ())
    return write(Call(rebuild, (storage, 0, shape, _contiguous_strides(shape), False, hooks)))


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _archive(records: tuple[_Record, ...], nbytes: int) -> tuple[bytes, bytes]:
    before, after = bytearray(), bytearray()
    current, shift = before, 0
    entries: list[_Entry] = []
    for record in records:
        data = record.data
        size, crc = (nbytes, 0) if data is None else (len(data), zlib.crc32(data))
        entry = _Entry(record.name, size, crc, shift + len(current))
        entries.append(entry)
        current += _local_header(entry)
        if data is None:
            shift = len(before) + nbytes
            current = after
        else:
            current += data
    start = shift + len(current)
    directory = b"".join(_directory_header(entry) for entry in entries)
    current += directory + _end_of_directory(len(entries), len(directory), start)
    return bytes(before), bytes(after)


def _local_header(entry: _Entry) -> bytes:
    """Padded through its extra field so that the data begins on torch's alignment."""
    name = entry.name.encode()
    big = entry.size >= _BIG
    zip64 = struct.pack("<HHQQ", 1, 16, entry.size, entry.size) if big else b""
    padding = -(entry.position + 30 + len(name) + len(zip64) + 4) % _ALIGNMENT
    extra = zip64 + struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    size = _BIG if big else entry.size
    version = 45 if big else 0
    fixed = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", version, 0, 0, 0, 0, entry.crc, size, size, len(name), len(extra))
    return fixed + name + extra


def _directory_header(entry: _Entry) -> bytes:
    name = entry.name.encode()
    size, position = min(entry.size, _BIG), min(entry.position, _BIG)
    values = [entry.size, entry.size] if size == _BIG else []
    values += [entry.position] if position == _BIG else []
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    version = 45 if values else 0
    lengths = (len(name), len(extra), 0, 0, 0, 0, position)
    fixed = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", version, version, 0, 0, 0, 0, entry.crc, size, size, *lengths)
    return fixed + name + extra


def _end_of_directory(count: int, size: int, start: int) -> bytes:
    if start + size < _BIG:
        return struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    zip64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    return zip64 + locator + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, _BIG, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTensor:
    """Where the bytes of a saved tensor lie in their file, and what they are."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


class ArchiveError(Exception):
    """The bytes are no `torch.save` archive of one plain, contiguous tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A saved value, its tensors and all other objects inert, and where the bytes of its storages lie."""

    value: Any
    storages: Mapping[str, tuple[int, int]]
    """By key: (file offset, size)."""

    def find(self, tensor: object) -> FoundTensor:
        """Where the bytes of a tensor of `value` lie. ArchiveError where it is no plain, contiguous tensor."""
        with _reading():
            rebuilt = _unwrapped(tensor)
            return _found(rebuilt, self.storages[rebuilt.arguments[0][2]])


def read_archive(descriptor: int, offset: int, length: int) -> Archive:
    """The archive in `length` bytes of an open file from `offset`. ArchiveError where there is none."""
    with _reading():
        entries = {name.split("/", 1)[1]: entry for name, entry in _directory(descriptor, offset, length)}
        start, size = _data(descriptor, offset, entries["data.pkl"])
        value = read_inert(os.pread(descriptor, size, start), lambda reference: reference)
        keys = [name for name in entries if name.startswith(_STORAGES)]
        storages = {name.removeprefix(_STORAGES): _data(descriptor, offset, entries[name]) for name in keys}
        return Archive(value=value, storages=storages)


def find_tensor(descriptor: int, offset: int, length: int) -> FoundTensor:
    """The tensor saved in `length` bytes of an open file from `offset`. ArchiveError where there is none."""
    archive = read_archive(descriptor, offset, length)
    return archive.find(archive.value)


def read_object(data: bytes) -> Any:
    """The value of a `torch.save` archive, its objects inert. ArchiveError where it is broken."""
    descriptor = os.memfd_create("archive")
    try:
        os.write(descriptor, data)
        return read_archive(descriptor, 0, len(data)).value
    finally:
        os.close(descriptor)


@contextmanager
def _reading() -> Generator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise ArchiveError(f"{type(error).__name__}: {error}") from error


def _unwrapped(tensor: object) -> Inert:
    """The plain tensor in a parameter."""
    while isinstance(tensor, Inert) and tensor.name.startswith("torch._utils._rebuild_parameter"):
        tensor = tensor.arguments[0]
    if not isinstance(tensor, Inert) or tensor.name != "torch._utils._rebuild_tensor_v2":
        raise ArchiveError("no plain tensor")
    return tensor


def _found(rebuilt: Inert, data: tuple[int, int]) -> FoundTensor:
    storage, storage_offset, shape, strides = rebuilt.arguments[:4]
    dtype = _storage_dtype(storage)
    shape = tuple(int(size) for size in shape)
    expected = _contiguous_strides(shape)
    if any(size > 1 and stride != want for size, stride, want in zip(shape, strides, expected, strict=True)):
        raise ArchiveError(f"a tensor that is not contiguous (strides {strides})")
    skipped = int(storage_offset) * dtype.item_bytes
    start, size = data
    if skipped + prod(shape) * dtype.item_bytes > size:
        raise ArchiveError(f"{size} bytes of data for shape {list(shape)}")
    return FoundTensor(offset=start + skipped, dtype=dtype.safetensors, shape=shape)


def _storage_dtype(reference: Any) -> Any:
    name = reference[1].name.removeprefix("torch.")
    for dtype in DTYPES:
        if name == dtype.storage and dtype.storage != "UntypedStorage":
            return dtype
    if name in BY_TORCH:
        return BY_TORCH[name]
    raise ArchiveError(f"storage {name}")


def _directory(descriptor: int, offset: int, length: int) -> Iterator[tuple[str, _Entry]]:
    tail_bytes = min(length, _DIRECTORY_TAIL_BYTES)
    tail = os.pread(descriptor, tail_bytes, offset + length - tail_bytes)
    end = tail.rfind(b"PK\5\6")
    if end < 0:
        raise ArchiveError("no zip directory")
    size, start = struct.unpack_from("<II", tail, end + 12)
    if _BIG in (size, start):
        locator = tail.rfind(b"PK\6\7")
        (zip64,) = struct.unpack_from("<Q", tail, locator + 8)
        size, start = struct.unpack("<QQ", os.pread(descriptor, 16, offset + zip64 + 40))
    directory = os.pread(descriptor, size, offset + start)
    position = 0
    while position < len(directory):
        entry, position = _read_entry(directory, position)
        yield entry.name, entry


def _read_entry(directory: bytes, position: int) -> tuple[_Entry, int]:
    (compression,) = struct.unpack_from("<H", directory, position + 10)
    if compression:
        raise ArchiveError("a compressed archive")
    crc, packed, size, name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<IIIHHH", directory, position + 16)
    (place,) = struct.unpack_from("<I", directory, position + 42)
    name_end = position + 46 + name_bytes
    name = directory[position + 46 : name_end].decode()
    wide = _zip64_values(directory[name_end : name_end + extra_bytes])
    size = next(wide) if size == _BIG else size
    packed = next(wide) if packed == _BIG else packed
    place = next(wide) if place == _BIG else place
    return _Entry(name, size, crc, place), name_end + extra_bytes + comment_bytes


def _zip64_values(extra: bytes) -> Iterator[int]:
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            yield from struct.unpack_from(f"<{size // 8}Q", extra, position + 4)
        position += 4 + size


def _data(descriptor: int, offset: int, entry: _Entry) -> tuple[int, int]:
    """(file offset, size) of an entry's data, after its local header."""
    name_bytes, extra_bytes = struct.unpack("<HH", os.pread(descriptor, 4, offset + entry.position + 26))
    return offset + entry.position + 30 + name_bytes + extra_bytes, entry.size
