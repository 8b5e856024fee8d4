"""Items that are not written yet, as a source: a Megatron checkpoint read as the HF tensors that it holds."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..checkpoints.extents import Extent, Item, StoredTensor, flat_index, paths_of
from ..checkpoints.safetensors_folder import whole_tensors
from .parts import cut


@dataclass(frozen=True, slots=True)
class ItemSource:
    """A Source of whole tensors, whose rows are found by cutting their extents."""

    items: Mapping[str, Item]
    tensors: Mapping[str, StoredTensor]
    always: tuple[Path, ...]
    """Files that are read for any tensor: an index."""

    @classmethod
    def of(cls, items: Iterable[Item], always: tuple[Path, ...] = ()) -> "ItemSource":
        """Slices of one stack come one after the other."""
        whole = {item.name: item for item in whole_tensors(items)}
        return cls(whole, {name: _stored(item) for name, item in whole.items()}, always)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        read = {path for name in names for extent in self.items[name].extents for path in paths_of(extent)}
        return tuple(sorted(read | set(self.always)))

    def whole(self, name: str) -> tuple[Extent, ...]:
        return self.items[name].extents

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        tensor = self.tensors[name]
        row_bytes = prod(tensor.shape[len(index) + 1 :]) * tensor.item_bytes
        first = flat_index(index, tensor.shape[: len(index)]) * tensor.shape[len(index)] + start
        return tuple(_between(self.items[name].extents, first * row_bytes, (first + rows) * row_bytes))


def _stored(item: Item) -> StoredTensor:
    return StoredTensor(dtype=item.dtype, shape=item.shape, item_bytes=item.nbytes // max(1, prod(item.shape)))


def _between(extents: tuple[Extent, ...], start: int, end: int) -> Iterator[Extent]:
    position = 0
    for extent in extents:
        low, high = max(start - position, 0), min(end - position, extent.length)
        position += extent.length
        if low < high:
            yield _stretch(extent, low, high)


def _stretch(extent: Extent, low: int, high: int) -> Extent:
    if low:
        head, rest = cut(extent, low)
        assert rest is not None  # cut at a row's end, where every extent can be cut
        assert head.length == low
        extent = rest
    head, _ = cut(extent, high - low)
    assert head.length == high - low
    return head
