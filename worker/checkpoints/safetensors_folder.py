"""An HF folder's weights: safetensors headers read and checked, shards laid out for writing."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, cast

from ..jobs.errors import BadInputError, ErrorCode
from .dtypes import BY_SAFETENSORS
from .extents import Extent, Item, Literal, Run, Span, StoredTensor, TargetFile, flat_index
from .plain_json import integer, loads, loads_unique
from .sharing import padding_before

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    tensor: StoredTensor
    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class SafetensorsFolder:
    """The tensors of a folder, by name. No tensor data is read."""

    places: Mapping[str, _Place]
    tensors: Mapping[str, StoredTensor]
    index: tuple[Path, ...] = ()
    """The file that names the shards, if there is one."""

    @classmethod
    def open(cls, folder: Path) -> "SafetensorsFolder":
        """Read all headers. BadInputError where a file is missing, a header is broken or a tensor lies twice."""
        weight_map = _read_index(folder) if (folder / INDEX).exists() else None
        files = sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]
        _refuse_missing(folder, files, {path.name for path in folder.glob("*.safetensors")})
        places: dict[str, _Place] = {}
        for file in files:
            for name, place in _read_header(folder / file).items():
                if name in places:
                    raise _bad(place.path, f"tensor {name!r}, which lies in {places[name].path.name} too", "it once")
                places[name] = place
        if weight_map is not None:
            _check_index(folder, weight_map, places)
        index = (folder / INDEX,) if weight_map is not None else ()
        return cls(places, {name: place.tensor for name, place in places.items()}, index)

    @classmethod
    def of_file(cls, path: Path) -> "SafetensorsFolder":
        """The tensors of one file, whatever it is called."""
        places = _read_header(path)
        return cls(places, {name: place.tensor for name, place in places.items()})

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The index, and the files in which these tensors lie."""
        return (*self.index, *sorted({self.places[name].path for name in names}))

    def whole(self, name: str) -> tuple[Run]:
        """All bytes of a tensor."""
        place = self.places[name]
        return (Run(place.path, place.offset, place.tensor.nbytes),)

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of a tensor, or of slice `index` of it; one run, since they are contiguous."""
        place = self.places[name]
        shape, lead = place.tensor.shape, len(index)
        row_bytes = prod(shape[lead + 1 :]) * place.tensor.item_bytes
        first = flat_index(index, shape[:lead]) * shape[lead] + start
        return (Run(place.path, place.offset + first * row_bytes, rows * row_bytes),)


def lay_out_shards(items: Iterable[Item], max_shard_bytes: int) -> tuple[TargetFile, ...]:
    """Files as HF names them: `model.safetensors`, or `model-00001-of-0000N.safetensors` beside an index."""
    shards: list[list[Item]] = [[]]
    filled = 0
    for item in whole_tensors(items):
        if shards[-1] and filled + item.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.nbytes
    if len(shards) == 1:
        return (lay_out_file(SINGLE, shards[0]),)
    return tuple(
        lay_out_file(f"model-{number:05d}-of-{len(shards):05d}.safetensors", shard)
        for number, shard in enumerate(shards, 1)
    )


def whole_tensors(items: Iterable[Item]) -> Iterator[Item]:
    """Slices of one stack, which come one after the other, as the one tensor that they are in HF's files."""
    for _, group in groupby(items, key=lambda item: item.name):
        slices = tuple(group)
        first = slices[0]
        extents = tuple(extent for item in slices for extent in item.extents)
        yield replace(first, index=(), stack=(), shape=(*first.stack, *first.shape), extents=extents)


def index_json(files: tuple[TargetFile, ...]) -> bytes | None:
    """`model.safetensors.index.json`; None for a single file, which needs none."""
    if len(files) == 1:
        return None
    spans = [(span, file.path) for file in files for span in file.spans if span.label]
    total = sum(span.length for span, _ in spans)
    index = {"metadata": {"total_size": total}, "weight_map": {str(span.label): path for span, path in spans}}
    return json.dumps(index, indent=2).encode() + b"\n"


def lay_out_file(path: str, items: Iterable[Item]) -> TargetFile:
    """One file of whole tensors; its header is padded so that they can share the blocks of where they come from."""
    items = tuple(items)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for item in items:
        header[item.name] = {
            "dtype": item.dtype,
            "shape": list(item.shape),
            "data_offsets": [position, position + item.nbytes],
        }
        position += item.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text += b" " * padding_before((extent for item in items for extent in item.extents), 8 + len(text), 8)
    spans = [Span(offset=0, extents=(Literal(struct.pack("<Q", len(text)) + text),))]
    for item in items:
        end = spans[-1].offset + spans[-1].length
        spans.append(Span(offset=end, extents=item.extents, label=item.label))
    return TargetFile(path=path, spans=tuple(spans))


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        weight_map = loads(path.read_bytes())["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(path, f"no readable weight_map ({type(error).__name__})", "tensor names and their files") from error
    for file in files.values():
        if Path(file).name != file:
            raise _bad(path, f"file name {file!r}", "plain file names of this folder")
    return files


def _refuse_missing(folder: Path, files: list[str], found: set[str]) -> None:
    missing = sorted(set(files) - found)
    if not missing:
        return
    if files == [SINGLE]:
        path, text = (
            folder / SINGLE,
            f"{len(found)} other safetensors files and no {INDEX}" if found else "no such file",
        )
    else:
        path, text = folder / missing[0], f"{len(missing)} of the {len(files)} files that {INDEX} names not there"
    raise BadInputError(
        "missing_file",
        f"safetensors file {path}",
        found=text,
        expected="a whole checkpoint",
        next_step="Wait until whoever saves or downloads it is done; else save or copy it again, completely.",
    )


def _check_index(folder: Path, weight_map: dict[str, str], places: Mapping[str, _Place]) -> None:
    for name, file in weight_map.items():
        place = places.get(name)
        if place is None or place.path.name != file:
            raise _bad(folder / INDEX, f"tensor {name!r} said to lie in {file}, which does not hold it", "it there")


def _read_header(path: Path) -> dict[str, _Place]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise _bad(path, f"a header length of {length} in a file of {size} bytes", "a safetensors file")
            text = file.read(length)
    except FileNotFoundError as error:
        raise _bad(path, "no such file", "a safetensors file", "missing_file") from error
    return _parse_header(path, text, size - 8 - length)


def _parse_header(path: Path, text: bytes, data_bytes: int) -> dict[str, _Place]:
    try:
        header: object = loads_unique(text)
        if not isinstance(header, dict):
            raise TypeError(f"a {type(header).__name__}")
        header = cast(dict[str, Any], header)
        header.pop("__metadata__", None)
        places = {name: _place(path, 8 + len(text), entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(path, f"a header that cannot be read ({error})", "safetensors' JSON header") from error
    end = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        start = place.offset - 8 - len(text)
        if start != end:
            raise _bad(path, f"tensor {name!r} at byte {start}, after byte {end}", "tensors without holes or overlaps")
        end += place.tensor.nbytes
    if end != data_bytes:
        raise _bad(path, f"{data_bytes} bytes of tensor data", f"{end} by its header; the file may be cut short")
    return places


def _place(path: Path, base: int, entry: dict[str, Any]) -> _Place:
    if len(entry["data_offsets"]) != 2:
        raise ValueError(f"data_offsets {entry['data_offsets']}")
    start, end = map(integer, entry["data_offsets"])
    if not isinstance(entry["shape"], list):
        raise TypeError(f"shape {entry['shape']!r}")
    shape = tuple(map(integer, cast("list[object]", entry["shape"])))
    dtype = BY_SAFETENSORS.get(str(entry["dtype"]))
    if dtype is None:
        raise ValueError(f"unknown dtype {entry['dtype']!r}")
    tensor = StoredTensor(dtype=dtype.safetensors, shape=shape, item_bytes=dtype.item_bytes)
    if min((start, *shape), default=0) < 0 or tensor.nbytes != end - start:
        raise ValueError(f"{end - start} bytes for shape {list(shape)} of {dtype.safetensors}")
    return _Place(tensor=tensor, path=path, offset=base + start)


def _bad(path: Path, found: str, expected: str, code: ErrorCode = "bad_header") -> BadInputError:
    return BadInputError(
        code,
        f"safetensors file {path}" if path.suffix == ".safetensors" else str(path),
        found=found,
        expected=expected,
        next_step="Wait until whoever saves or downloads it is done; else save or copy it again, completely.",
    )
