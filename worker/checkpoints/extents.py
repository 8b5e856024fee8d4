"""Extents: which bytes of which files make up a span of bytes; the whole language between formats and engine."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from .operations import Operation


@dataclass(frozen=True, slots=True)
class Run:
    """`length` bytes of one file, from `offset`."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Strand:
    """A column cut: rows of `row_bytes` each, one after the other in the file from `offset`."""

    path: Path
    offset: int
    row_bytes: int

    def after(self, rows: int) -> "Strand":
        """The same cut, `rows` rows further down."""
        return Strand(self.path, self.offset + rows * self.row_bytes, self.row_bytes)


@dataclass(frozen=True, slots=True)
class Weave:
    """`rows` rows, each made of one row of every strand, left to right."""

    rows: int
    strands: tuple[Strand, ...]

    @property
    def length(self) -> int:
        return self.rows * sum(strand.row_bytes for strand in self.strands)


@dataclass(frozen=True, slots=True)
class Zeros:
    """`length` zero bytes."""

    length: int


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that the plan itself holds: headers and trailers."""

    data: bytes

    @property
    def length(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Permuted:
    """The elements of `extents`, read as an array of `shape`, its axes put in the order `axes`.

    It is made in memory, whole: only slices that are small beside a model (one expert's matrix) are permuted.
    """

    extents: tuple["Extent", ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    item_bytes: int

    @property
    def length(self) -> int:
        return prod(self.shape) * self.item_bytes


@dataclass(frozen=True, slots=True)
class Operand:
    """What a computation reads: `row_bytes` bytes for each `rows_each` rows of its result, or several rows' for one.

    With `rows_each` 0, all rows share the same `row_bytes` bytes.
    """

    extents: tuple["Extent", ...]
    row_bytes: int
    rows_each: int = 1
    skip: int = 0
    """Bytes of the extents before those that are meant."""


@dataclass(frozen=True, slots=True)
class Computed:
    """`rows` rows of `row_bytes`, from row `first`, of what an operation makes of its (whole) operands.

    It is made some rows at a time: memory does not grow with it.
    """

    operation: Operation
    operands: tuple[Operand, ...]
    first: int
    rows: int
    row_bytes: int

    @property
    def length(self) -> int:
        return self.rows * self.row_bytes


Extent = Run | Weave | Zeros | Literal | Permuted | Computed


def is_computed(extent: Extent) -> bool:
    """Whether arithmetic has a part in it."""
    match extent:
        case Computed():
            return True
        case Permuted(extents=extents):
            return any(map(is_computed, extents))
        case _:
            return False


def paths_of(extent: Extent) -> frozenset[Path]:
    """The files that it is read from."""
    match extent:
        case Run(path=path):
            return frozenset((path,))
        case Weave(strands=strands):
            return frozenset(strand.path for strand in strands)
        case Permuted(extents=extents):
            return frozenset[Path]().union(*map(paths_of, extents))
        case Computed(operands=operands):
            return frozenset[Path]().union(*(paths_of(inner) for operand in operands for inner in operand.extents))
        case Zeros() | Literal():
            return frozenset()


def flat_index(index: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """The number of slice `index` among all slices of a stack with these axes, the last axis fastest."""
    flat = 0
    for place, size in zip(index, axes, strict=True):
        flat = flat * size + place
    return flat


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as a checkpoint's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    item_bytes: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A tensor, or a slice of one, to be written: what it is called there and where its bytes come from."""

    name: str
    index: tuple[int, ...]
    """Which slice of the stack; empty where it is no stack."""
    stack: tuple[int, ...]
    """The stack's axes."""
    dtype: str
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]

    @property
    def nbytes(self) -> int:
        return sum(extent.length for extent in self.extents)

    @property
    def label(self) -> str:
        """Its name in the manifest."""
        return f"{self.name}[{','.join(map(str, self.index))}]" if self.index else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a target file. `label` names the tensor whose bytes it holds; framing has none."""

    offset: int
    extents: tuple[Extent, ...]
    label: str | None = None

    @property
    def length(self) -> int:
        return sum(extent.length for extent in self.extents)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetFile:
    """A file to be written: its path inside the target folder, and its spans from first byte to last."""

    path: str
    spans: tuple[Span, ...]

    @property
    def size(self) -> int:
        return self.spans[-1].offset + self.spans[-1].length if self.spans else 0
