"""A `torch_dist` folder whose experts, and whose gates and ups, have keys of their own: `singleton_local_shards`.

Source: megatron-core 0.19, `apply_swiglu_sharded_factory`, `SequentialMLP` and Transformer Engine's grouped layers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .extents import Extent, StoredTensor
from .refusal import bad_checkpoint
from .torch_dist import TorchDistFolder

_EXPERT = re.compile(r"((?:decoder|mtp)\.layers\..+\.experts\.experts)\.(0|[1-9]\d*)\.(.+)")
_HALF = re.compile(r"((?:decoder|mtp)\.layers\..+\.linear_fc1\.(?:weight|bias))_([wv])")
_HALVES = {"w": 0, "v": 1}

Pieces = Mapping[str, Mapping[tuple[int, ...], tuple[str, ...]]]
"""Of a tensor, by its slices: the keys whose rows, one after the other, are the slice."""


def pieces_of(keys: Iterable[str]) -> Pieces:
    """Tensors by the names that they have without `singleton_local_shards`; most are one key, which is that name."""
    found: defaultdict[str, defaultdict[tuple[int, ...], list[tuple[int, str]]]]
    found = defaultdict(lambda: defaultdict(list))
    for key in keys:
        name, index, place = key, (), 0
        if expert := _EXPERT.fullmatch(name):
            name, index = f"{expert[1]}.{expert[3]}", (int(expert[2]),)
        if half := _HALF.fullmatch(name):
            name, place = half[1], _HALVES[half[2]]
        found[name][index].append((place, key))
    return {
        name: {index: tuple(key for _, key in sorted(of)) for index, of in sorted(slices.items())}
        for name, slices in found.items()
    }


def has_singletons(keys: Iterable[str]) -> bool:
    """Whether any of these is a piece of a tensor."""
    return any(_EXPERT.fullmatch(key) or _HALF.fullmatch(key) for key in keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class SingletonShards:
    """A Source of the same tensors, experts stacked and halves joined."""

    folder: TorchDistFolder
    pieces: Pieces
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def of(cls, folder: TorchDistFolder) -> "SingletonShards":
        """BadInputError where an expert or a half is missing, or of another shape."""
        pieces = pieces_of(folder.tensors)
        tensors = {name: _joined(folder, name, slices) for name, slices in pieces.items()}
        return cls(folder=folder, pieces=pieces, tensors=tensors)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The index, the word on its format, and the files in which these tensors lie."""
        return self.folder.files_of(key for name in names for keys in self.pieces[name].values() for key in keys)

    def whole(self, name: str) -> tuple[Extent, ...]:
        """All bytes of a tensor, in order."""
        keys = (key for keys in self.pieces[name].values() for key in keys)
        return tuple(extent for key in keys for extent in self.folder.whole(key))

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of a tensor, or of slice `index` of a stack, in order."""
        cuts = self._cuts(self.pieces[name][index], start, start + rows)
        return tuple(extent for key, first, count in cuts for extent in self.folder.rows(key, (), first, count))

    def _cuts(self, keys: tuple[str, ...], start: int, end: int) -> Iterator[tuple[str, int, int]]:
        """(key, first row, rows) of what lies between these rows of all keys together."""
        before = 0
        for key in keys:
            height = next(iter(self.folder.tensors[key].shape), 1)
            first, last = max(start - before, 0), min(end - before, height)
            if first < last:
                yield key, first, last - first
            before += height


def _joined(folder: TorchDistFolder, name: str, slices: Mapping[tuple[int, ...], tuple[str, ...]]) -> StoredTensor:
    keys = [key for of in slices.values() for key in of]
    first = folder.tensors[keys[0]]
    if keys == [name]:
        return first
    stack = () if () in slices else (len(slices),)
    indices = [(place,) for place in range(len(slices))] if stack else [()]
    halves = 2 if any(map(_HALF.fullmatch, keys)) else 1
    whole = list(slices) == indices and all(len(of) == halves for of in slices.values())
    whole = whole and (halves == 1 or (bool(first.shape) and all(map(_HALF.fullmatch, keys))))
    if not whole or any(folder.tensors[key] != first for key in keys):
        found = f"{len(keys)} pieces of tensor {name!r}, from {keys[0]!r} to {keys[-1]!r}"
        raise bad_checkpoint(folder.folder, found, "each expert and each half of it once, all in one form")
    shape = (*stack, *first.shape) if halves == 1 else (*stack, 2 * first.shape[0], *first.shape[1:])
    return StoredTensor(dtype=first.dtype, shape=shape, item_bytes=first.item_bytes)
