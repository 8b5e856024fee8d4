"""What the engine reads from: a checkpoint of either side, by tensor name and rows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from .extents import Extent, StoredTensor


class Source(Protocol):
    """A checkpoint whose index has been read; its data lies where `rows` says."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor, by name."""
        ...

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of a tensor, or of slice `index` of a stack, in order."""
        ...

    def whole(self, name: str) -> tuple[Extent, ...]:
        """All bytes of a tensor, in order."""
        ...

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The files that are read for these tensors."""
        ...
