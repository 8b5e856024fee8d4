"""Megatron-Core's `torch_dist` folders: a torch DCP checkpoint, read by its index."""

import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dtypes import BY_TORCH
from .extents import Extent, StoredTensor
from .plain_json import integer, loads
from .refusal import bad_checkpoint
from .tiling import Tiling
from .torch_archive import ArchiveError, find_tensor, read_archive
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
class Chunk:
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
    chunks: Mapping[str, list[Chunk]]
    offsets: dict[_Stored, int] = field(default_factory=dict[_Stored, int], repr=False)
    """Where the data of items that were looked at begins."""
    tilings: dict[str, Tiling[Chunk]] = field(default_factory=dict[str, Tiling[Chunk]], repr=False)
    """Of the tensors that were looked at."""

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
        """The index, the word on its format, and the files in which chunks of these tensors lie."""
        files = {chunk.stored.file for name in names for chunk in self.chunks[name]}
        return (self.folder / METADATA, self.folder / FORMAT, *(self.folder / name for name in sorted(files)))

    def object(self, name: str) -> Any:
        """A stored object, its classes inert; None where there is none of this name."""
        stored = self.objects.get(name)
        if stored is None:
            return None
        path = self.folder / stored.file
        try:
            with path.open("rb") as file:
                return read_archive(file.fileno(), stored.offset, stored.length).value
        except FileNotFoundError as error:
            raise bad_checkpoint(path, "no such file", f"the file that holds object {name!r}", missing=True) from error
        except ArchiveError as error:
            found = f"object {name!r} in a form that cannot be read ({error})"
            raise bad_checkpoint(path, found, "torch.save items") from error

    def whole(self, name: str) -> tuple[Extent, ...]:
        """All bytes of a tensor, in order."""
        shape = self.tensors[name].shape
        return self.rows(name, (), 0, shape[0] if shape else 1)

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of a tensor, or of slice `index` of a stack, however its chunks are cut."""
        return self.tiling(name).rows(index, start, rows)

    def tiling(self, name: str) -> Tiling[Chunk]:
        """A tensor with the chunks that make it up."""
        if name not in self.tilings:
            self.tilings[name] = self._tiling(name)
        return self.tilings[name]

    def _tiling(self, name: str) -> Tiling[Chunk]:
        def locate(chunk: Chunk) -> tuple[Path, int]:
            return self.folder / chunk.stored.file, self._data_offset(name, chunk)

        return Tiling(name=name, origin=self.folder, tensor=self.tensors[name], boxes=self.chunks[name], locate=locate)

    def _data_offset(self, name: str, chunk: Chunk) -> int:
        if chunk.stored not in self.offsets:
            self.offsets[chunk.stored] = self._find_data(name, chunk)
        return self.offsets[chunk.stored]

    def _find_data(self, name: str, chunk: Chunk) -> int:
        path = self.folder / chunk.stored.file
        try:
            with path.open("rb", buffering=0) as file:
                found = find_tensor(file.fileno(), chunk.stored.offset, chunk.stored.length)
        except FileNotFoundError as error:
            raise bad_checkpoint(path, "no such file", f"the file that holds tensor {name!r}", missing=True) from error
        except ArchiveError as error:
            raise bad_checkpoint(
                path, f"tensor {name!r} in a form that cannot be read ({error})", "torch.save items"
            ) from error
        if found.shape != chunk.sizes or found.dtype != self.tensors[name].dtype:
            found_text = f"tensor {name!r} as {found.dtype} {list(found.shape)}"
            raise bad_checkpoint(path, found_text, f"{self.tensors[name].dtype} {list(chunk.sizes)} by the index")
        return found.offset


def _check_format(folder: Path) -> None:
    path = folder / FORMAT
    try:
        found: object = loads(path.read_bytes())["sharded_backend"]
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
            _refuse_outside(name, shape, sizes[name])
    chunks: defaultdict[str, list[Chunk]] = defaultdict(list)
    objects: dict[str, _Stored] = {}
    items: dict[_Stored, str] = {}
    for index, info in metadata.attribute("storage_data").items():
        name, offset = index.attribute("fqn"), index.attribute("offset")
        stored = _Stored(_plain_name(info), _count(info.attribute("offset")), _count(info.attribute("length")))
        if name in tensors:
            if stored in items:
                raise ValueError(f"one item for {items[stored]!r} and {name!r}")
            items[stored] = name
            chunks[name].append(Chunk(offset, sizes[name][offset], stored))
        else:
            objects[name] = stored
    for name in tensors:
        chunks[name].sort(key=lambda chunk: chunk.offsets)
    return TorchDistFolder(folder=folder, tensors=tensors, objects=objects, chunks=dict(chunks))


def _refuse_outside(name: str, shape: tuple[int, ...], chunks: Mapping[tuple[int, ...], tuple[int, ...]]) -> None:
    """ValueError where a chunk reaches out of its tensor."""
    for offsets, sizes in chunks.items():
        inside = all(0 <= begin <= begin + size <= end for begin, size, end in zip(offsets, sizes, shape, strict=True))
        if not inside:
            raise ValueError(f"a chunk of {list(sizes)} at {list(offsets)} of {name!r}, which is {list(shape)}")


def _count(value: object) -> int:
    if integer(value) < 0:
        raise ValueError(f"{value} bytes")
    return integer(value)


def _plain_name(info: Inert) -> str:
    """A checkpoint names files beside its index and nothing else; a path that leaves the folder is an attack."""
    name = str(info.attribute("relative_path"))
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(f"file name {name!r}")
    if info.attribute("transform_descriptors"):
        raise ValueError(f"compressed or encrypted items in {name}")
    return name
