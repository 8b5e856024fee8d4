"""Megatron-Core's `torch_dist` folders: a torch DCP checkpoint, read by its index."""

import json
import os
import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from pathlib import Path
from typing import Any

from ..jobs.errors import BadInputError
from .dtypes import BY_TORCH
from .extents import Extent, Run, StoredTensor, Strand, Weave, flat_index
from .torch_archive import ArchiveError, find_tensor, read_object
from .torch_pickle import Inert, read_inert

METADATA = ".metadata"
FORMAT = "metadata.json"
_BACKEND = "torch_dist"
_META = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True, slots=True)
class _Stored:
    """An item of a `.distcp` file."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A box of a global tensor, and the item that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    stored: _Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchDistFolder:
    """The tensors and objects of one iteration folder. Tensor data is never read whole, and no pickle is run."""

    folder: Path
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, _Stored]
    chunks: Mapping[str, list[_Chunk]]
    offsets: dict[_Stored, int] = field(default_factory=dict[_Stored, int], repr=False)
    """Where the data of items that were looked at begins."""
    by_slice: dict[tuple[str, int], dict[tuple[int, ...], list[_Chunk]]] = field(
        default_factory=dict[tuple[str, int], dict[tuple[int, ...], list[_Chunk]]], repr=False
    )
    """By tensor and number of stack axes: the chunks of each slice."""

    @classmethod
    def open(cls, folder: Path) -> "TorchDistFolder":
        """Read `.metadata`. BadInputError where it is missing, broken, or of another format."""
        _check_format(folder)
        metadata = _read_metadata(folder / METADATA)
        try:
            return _parse(folder, metadata)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise bad_checkpoint(
                folder / METADATA, f"an index that cannot be read ({error})", "torch DCP metadata"
            ) from error

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The index, and the files in which chunks of these tensors lie."""
        files = {chunk.stored.file for name in names for chunk in self.chunks[name]}
        return (self.folder / METADATA, *(self.folder / name for name in sorted(files)))

    def object(self, name: str) -> Any:
        """A stored object, its classes inert; None where there is none of this name."""
        stored = self.objects.get(name)
        if stored is None:
            return None
        with (self.folder / stored.file).open("rb") as file:
            file.seek(stored.offset)
            return read_object(file.read(stored.length))

    def whole(self, name: str) -> tuple[Extent, ...]:
        """All bytes of a tensor, in order."""
        shape = self.tensors[name].shape
        return self.rows(name, (), 0, shape[0] if shape else 1)

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of a tensor, or of slice `index` of a stack, however its chunks are cut."""
        lead = len(index)
        width = self.tensors[name].shape[lead + 1] if len(self.tensors[name].shape) > lead + 1 else 1
        cuts = [
            (chunk, max(start, chunk.offsets[lead]), min(start + rows, chunk.offsets[lead] + chunk.sizes[lead]))
            for chunk in self._chunks_of(name, index)
        ]
        cuts = [cut for cut in cuts if cut[1] < cut[2]]
        edges = sorted({start, start + rows, *(edge for _, low, high in cuts for edge in (low, high))})
        return tuple(
            self._band(name, index, low, high, width, [chunk for chunk, a, b in cuts if a <= low and high <= b])
            for low, high in pairwise(edges)
        )

    def _chunks_of(self, name: str, index: tuple[int, ...]) -> list[_Chunk]:
        """The chunks that hold rows of one slice; a stack's are sorted out once, by the slices that they hold."""
        key = (name, len(index))
        if key not in self.by_slice:
            self.by_slice[key] = _by_slice(self.chunks[name], len(index))
        return self.by_slice[key].get(index, [])

    def _band(
        self, name: str, index: tuple[int, ...], low: int, high: int, width: int, chunks: list[_Chunk]
    ) -> Run | Weave:
        """Rows low..high, across which no chunk begins or ends: one run, or strands side by side."""
        column = len(index) + 1
        chunks = sorted(chunks, key=lambda chunk: chunk.offsets[column:])
        reached = 0
        strands: list[Strand] = []
        for chunk in chunks:
            begin, size = (chunk.offsets[column], chunk.sizes[column]) if len(chunk.sizes) > column else (0, 1)
            if begin != reached or chunk.sizes[column + 1 :] != self.tensors[name].shape[column + 1 :]:
                break
            reached += size
            strands.append(self._strand(name, chunk, index, low))
        if reached != width or len(strands) != len(chunks):
            raise bad_checkpoint(
                self.folder, f"chunks of tensor {name!r} that do not tile rows {low} to {high}", "exact tiling"
            )
        if len(strands) == 1:
            return Run(strands[0].path, strands[0].offset, (high - low) * strands[0].row_bytes)
        return Weave(high - low, tuple(strands))

    def _strand(self, name: str, chunk: _Chunk, index: tuple[int, ...], low: int) -> Strand:
        lead = len(index)
        row_bytes = prod(chunk.sizes[lead + 1 :]) * self.tensors[name].item_bytes
        inside = tuple(place - offset for place, offset in zip(index, chunk.offsets, strict=False))
        rows_before = flat_index(inside, chunk.sizes[:lead]) * chunk.sizes[lead] + low - chunk.offsets[lead]
        return Strand(
            self.folder / chunk.stored.file, self._data_offset(name, chunk) + rows_before * row_bytes, row_bytes
        )

    def _data_offset(self, name: str, chunk: _Chunk) -> int:
        if chunk.stored not in self.offsets:
            self.offsets[chunk.stored] = self._find_data(name, chunk)
        return self.offsets[chunk.stored]

    def _find_data(self, name: str, chunk: _Chunk) -> int:
        path = self.folder / chunk.stored.file
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise bad_checkpoint(path, "no such file", f"the file that holds tensor {name!r}", missing=True) from error
        try:
            found = find_tensor(descriptor, chunk.stored.offset, chunk.stored.length)
        except ArchiveError as error:
            raise bad_checkpoint(
                path, f"tensor {name!r} in a form that cannot be read ({error})", "torch.save items"
            ) from error
        finally:
            os.close(descriptor)
        if found.shape != chunk.sizes or found.dtype != self.tensors[name].dtype:
            found_text = f"tensor {name!r} as {found.dtype} {list(found.shape)}"
            raise bad_checkpoint(path, found_text, f"{self.tensors[name].dtype} {list(chunk.sizes)} by the index")
        return found.offset


def _by_slice(chunks: Iterable[_Chunk], lead: int) -> dict[tuple[int, ...], list[_Chunk]]:
    """Every slice of the first `lead` axes with the chunks that reach into it."""
    slices: defaultdict[tuple[int, ...], list[_Chunk]] = defaultdict(list)
    for chunk in chunks:
        axes = zip(chunk.offsets[:lead], chunk.sizes[:lead], strict=True)
        for index in product(*(range(offset, offset + size) for offset, size in axes)):
            slices[index].append(chunk)
    return slices


def _check_format(folder: Path) -> None:
    path = folder / FORMAT
    try:
        found: object = json.loads(path.read_bytes())["sharded_backend"]
    except FileNotFoundError as error:
        raise bad_checkpoint(path, "no such file", "a torch_dist checkpoint", missing=True) from error
    except (ValueError, KeyError, TypeError) as error:
        raise bad_checkpoint(path, "no readable sharded_backend", f"{_BACKEND!r}") from error
    if found != _BACKEND:
        raise bad_checkpoint(path, f"sharded_backend {found!r}", f"{_BACKEND!r}")


def _read_metadata(path: Path) -> Any:
    try:
        return read_inert(path.read_bytes())
    except FileNotFoundError as error:
        raise bad_checkpoint(path, "no such file", "the index of a torch_dist checkpoint", missing=True) from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise bad_checkpoint(path, f"no readable pickle ({type(error).__name__})", "torch DCP metadata") from error


def _parse(folder: Path, metadata: Any) -> TorchDistFolder:
    tensors: dict[str, StoredTensor] = {}
    sizes: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {}
    for name, entry in metadata.attribute("state_dict_metadata").items():
        if entry.name == f"{_META}.TensorStorageMetadata":
            dtype = BY_TORCH[entry.attribute("properties").state[0]]
            shape: tuple[int, ...] = entry.attribute("size")
            tensors[name] = StoredTensor(dtype=dtype.safetensors, shape=shape, item_bytes=dtype.item_bytes)
            boxes: list[Inert] = entry.attribute("chunks")
            sizes[name] = {box.attribute("offsets"): box.attribute("sizes") for box in boxes}
    chunks: defaultdict[str, list[_Chunk]] = defaultdict(list)
    objects: dict[str, _Stored] = {}
    for index, info in metadata.attribute("storage_data").items():
        name, offset = index.attribute("fqn"), index.attribute("offset")
        stored = _Stored(_plain_name(info), info.attribute("offset"), info.attribute("length"))
        if name in tensors:
            chunks[name].append(_Chunk(offset, sizes[name][offset], stored))
        else:
            objects[name] = stored
    for name in tensors:
        chunks[name].sort(key=lambda chunk: chunk.offsets)
    return TorchDistFolder(folder=folder, tensors=tensors, objects=objects, chunks=dict(chunks))


def _plain_name(info: Inert) -> str:
    """A checkpoint names files beside its index and nothing else; a path that leaves the folder is an attack."""
    name = str(info.attribute("relative_path"))
    if Path(name).name != name:
        raise ValueError(f"file name {name!r}")
    if info.attribute("transform_descriptors"):
        raise ValueError(f"compressed or encrypted items in {name}")
    return name


def bad_checkpoint(path: Path, found: str, expected: str, *, missing: bool = False) -> BadInputError:
    """The error for a Megatron checkpoint that is not what it should be."""
    return BadInputError(
        "missing_file" if missing else "bad_checkpoint",
        f"Megatron checkpoint {path}",
        found=found,
        expected=expected,
        next_step="Point at the folder that Megatron saved (with its tracker file), and check that it is complete.",
    )
