"""Tensors read by the formats' own libraries: safetensors, and torch's distributed checkpointing."""
# torch and Megatron are typed in part:
# pyright: basic

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from ..checkpoints.singleton_shards import Pieces, pieces_of
from ..jobs.errors import BadInputError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_KEPT = 4
"""Items of a `.distcp` file that are kept: neighbours in a plan read the same ones."""

_BROKEN = (
    AttributeError,
    EOFError,
    FileNotFoundError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)
"""What the libraries raise on a file that is not what it should be. Any other fault of a disk may be gone next time."""

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class TensorReader(Protocol):
    """A checkpoint by tensor name. Dequantized tensors are fp32, all others as they are stored."""

    def read(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        """A tensor, or slice `index` of a stack."""
        ...

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that is there, as it is stored."""
        ...


@contextmanager
def reading(thing: str) -> Iterator[None]:
    """BadInputError (`not_verified`) where `thing` cannot be read by its format's own library."""
    try:
        yield
    except _BROKEN as error:
        raise BadInputError(
            "not_verified",
            thing,
            found=f"bytes that its format's own library cannot read ({type(error).__name__}: {error})"[:400],
            expected="a file in its format",
            next_step="Nothing was published. Submit it again; check the disk if that repeats.",
        ) from error


@dataclass(slots=True)
class SafetensorsReader:
    """An HF folder. `block` is that of fp8 scales, in rows and columns; `single` the file where there is no index."""

    folder: Path
    block: tuple[int, int] = (128, 128)
    single: str = _SINGLE
    _files: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _open: dict[str, Any] = field(default_factory=dict[str, Any], init=False)

    def __post_init__(self) -> None:
        index = self.folder / _INDEX
        if index.exists():
            self._files = json.loads(index.read_text())["weight_map"]
        else:
            self._files = dict.fromkeys(self._file(self.single).keys(), self.single)

    def read(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        if f"{name}_scale_inv" in self._files:
            return self._fp8(name)
        if f"{name}_packed" in self._files:
            return self._int4(name)
        if f"{name}_blocks" in self._files:
            return self._mxfp4(name, index)
        return self.stored(name, index)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        files = [self._file(path.name) for path in sorted(self.folder.glob("*.safetensors"))]
        return {name: tuple(file.get_slice(name).get_shape()) for file in files for name in file.keys()}  # noqa: SIM118

    def stored(self, name: str, index: tuple[int, ...] = ()) -> torch.Tensor:
        """As the file has it, codes and scales too."""
        whole = self._file(self._files[name]).get_slice(name)
        return cast(torch.Tensor, whole[index] if index else whole[:])

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]

    def _fp8(self, name: str) -> torch.Tensor:
        codes, scales = self.stored(name).float(), self.stored(f"{name}_scale_inv").float()
        tall = scales.repeat_interleave(self.block[0], 0)[: codes.shape[0]]
        return codes * tall.repeat_interleave(self.block[1], 1)[:, : codes.shape[1]]

    def _int4(self, name: str) -> torch.Tensor:
        rows, columns = (int(size) for size in self.stored(f"{name}_shape"))
        words, scales = self.stored(f"{name}_packed").long(), self.stored(f"{name}_scale").float()
        codes = torch.stack([(words >> (4 * place)) & 15 for place in range(8)], -1).reshape(rows, -1)[:, :columns]
        return (codes - 8).float() * scales.repeat_interleave(-(-columns // scales.shape[1]), 1)[:, :columns]

    def _mxfp4(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        codes, exponents = self.stored(f"{name}_blocks", index).long(), self.stored(f"{name}_scales", index)
        table = torch.tensor(_E2M1)
        values = torch.stack((table[codes & 15], table[codes >> 4]), -1).flatten(-3).unflatten(-1, (-1, 32))
        powers = torch.pow(2.0, exponents.double() - 127).float()[..., None]
        return (values * powers).flatten(-2).transpose(-1, -2)


@dataclass(slots=True)
class TorchDistReader:
    """An iteration folder, by the index as torch reads it, each item by `torch.load`.

    What `singleton_local_shards` saved in pieces is read whole.
    """

    folder: Path
    _metadata: Any = field(init=False)
    _pieces: Pieces = field(init=False)
    _items: "OrderedDict[tuple[str, int], torch.Tensor]" = field(
        default_factory=lambda: OrderedDict[tuple[str, int], torch.Tensor](), init=False
    )

    def __post_init__(self) -> None:
        self._metadata = FileSystemReader(self.folder).read_metadata()
        found: Any = {}
        for index, info in self._metadata.storage_data.items():
            if index.offset is not None:
                found.setdefault(index.fqn, {})[tuple(index.offset)] = info
        self._metadata.by_name = found
        self._pieces = pieces_of(found)

    def read(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        if name in self._metadata.by_name:
            return self._stored(name, index)
        return torch.cat([self._stored(key, ()) for key in self._pieces[name][index]])

    def _stored(self, name: str, index: tuple[int, ...]) -> torch.Tensor:
        entry = self._metadata.state_dict_metadata[name]
        lead = len(index)
        whole = torch.empty(tuple(entry.size)[lead:], dtype=entry.properties.dtype)
        filled = 0
        for chunk in entry.chunks:
            offsets, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
            inside = [place - offset for place, offset in zip(index, offsets, strict=False)]
            if all(0 <= place < size for place, size in zip(inside, sizes, strict=False)):
                data = self._item(name, offsets)[tuple(inside)]
                place = tuple(slice(o, o + s) for o, s in zip(offsets[lead:], sizes[lead:], strict=True))
                whole[place] = data
                filled += data.numel()
        if filled != whole.numel():
            raise _incomplete(self.folder, name, filled, whole.numel())
        return whole

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        entries = self._metadata.state_dict_metadata.items()
        return {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}

    def _item(self, name: str, offsets: tuple[int, ...]) -> torch.Tensor:
        info = self._metadata.by_name[name][offsets]
        key = (info.relative_path, info.offset)
        if key not in self._items:
            with (self.folder / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                self._items[key] = torch.load(io.BytesIO(file.read(info.length)), weights_only=True)
            while len(self._items) > _KEPT:
                self._items.popitem(last=False)
        return self._items[key]


def _incomplete(folder: Path, name: str, found: int, expected: int) -> BadInputError:
    return BadInputError(
        "not_verified",
        f"Megatron tensor {name!r} in {folder}",
        found=f"chunks of {found} elements",
        expected=f"{expected} elements, each once",
        next_step="Do not use it; make it anew from its source.",
    )
