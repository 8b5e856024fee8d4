"""Computed extents made some rows at a time: their operands' bytes read, the operation done, the result handed out."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from ..checkpoints.extents import Computed, Extent, Operand, Permuted
from ..checkpoints.operations import (
    BlockFp8,
    BlockScales,
    LowRankUpdate,
    Mxfp4,
    Operation,
    PackedInt4,
    ToBlockFp8,
    piece_rows,
)

if TYPE_CHECKING:
    from .arithmetic import Arithmetic, Bytes

PIECE_BYTES = 2**20
"""Of a result; small enough for a core's own cache, together with what it is made of."""
GPU_PIECE_BYTES = 64 * 2**20
"""Large enough that a transfer's start does not count."""

Read = Callable[[Extent, int, int, int], "Bytes"]
"""`length` bytes of an extent, from byte `offset` of it; the last number is that of the operand that it is read for."""


def pieces(extent: Computed, read: Read, arithmetic: "Arithmetic", piece_bytes: int) -> Iterator["Bytes"]:
    """The extent's bytes, in order; each piece holds until the next is asked for."""
    band = piece_rows(extent.operation)
    rows_each = max(1, piece_bytes // _moved_for_a_row(extent) // band) * band
    end = extent.first + extent.rows
    first = extent.first
    operation, shared = _prepared(extent, read)
    while first < end:
        # Bands begin where the tensor's do, wherever this extent was cut from it.
        until = min(end, (first // band) * band + rows_each)
        operands = (
            _operand(operand, number, first, until - first, read)
            for number, operand in enumerate(extent.operands)
            if operand.rows_each
        )
        yield arithmetic(operation, (*operands, *shared), first, until - first)
        first = until


def _moved_for_a_row(extent: Computed) -> int:
    """The larger of what is made and what is read: a row of scales is made of many rows of a weight."""
    read = [operand.row_bytes // operand.rows_each for operand in extent.operands if operand.rows_each]
    return max(extent.row_bytes, *read, 1)


def _prepared(extent: Computed, read: Read) -> "tuple[Operation, tuple[Bytes, ...]]":
    """What all rows share, read once."""
    shared = tuple(
        shared_operand(operand, number, read) for number, operand in enumerate(extent.operands) if not operand.rows_each
    )
    if not isinstance(extent.operation, LowRankUpdate):
        return extent.operation, shared
    from .low_rank import prepared

    return prepared(extent.operation, shared)


def shared_operand(operand: Operand, number: int, read: Read) -> "Bytes":
    """What an operand holds for all rows alike."""
    return _range(operand.extents, number, operand.skip, operand.skip + operand.row_bytes, read)


def _operand(operand: Operand, number: int, first: int, rows: int, read: Read) -> "Bytes":
    start = operand.skip + first // operand.rows_each * operand.row_bytes
    end = operand.skip + -(-(first + rows) // operand.rows_each) * operand.row_bytes
    return _range(operand.extents, number, start, min(end, sum(extent.length for extent in operand.extents)), read)


def _range(extents: tuple[Extent, ...], number: int, start: int, end: int, read: Read) -> "Bytes":
    import numpy as np

    found: list[Bytes] = []
    wanted = end - start
    for extent in extents:
        low, high = max(start, 0), min(end, extent.length)
        if low < high:
            data = read(extent, low, high - low, number)
            # What is read for one operand takes the place of what was read for it before.
            found.append(data if high - low == wanted else data.copy())
        start, end = start - extent.length, end - extent.length
    return found[0] if len(found) == 1 else np.concatenate(found)


def working_bytes(extent: Extent) -> int:
    """Of what a process holds while it adds adapters: their factors and a block of rows in fp32, with what is made."""
    if not isinstance(extent, Computed) or not isinstance(extent.operation, LowRankUpdate):
        return 0
    shared = sum(operand.row_bytes for operand in extent.operands if not operand.rows_each)
    rows = max(piece_rows(extent.operation) * extent.row_bytes, PIECE_BYTES)
    return _TIMES_FACTORS * shared + _TIMES_ROWS * rows


_TIMES_FACTORS = 6
"""As read, in fp32, turned, and once more where several are combined."""
_TIMES_ROWS = 10
"""As read; base, product and sum in fp32; what rounding takes."""


@cache
def on_cpu() -> "Arithmetic":
    """numpy's; imported by whoever computes."""
    from .arithmetic import compute

    return compute


def import_loops(extents: Iterable[Extent]) -> None:
    """Here, where they are wanted: processes that are forked from this one need not each load a compiler."""
    if any(isinstance(operation, _LOOPED) for operation in _operations(extents)):
        from . import loops  # noqa: F401  # pyright: ignore[reportUnusedImport]


def gains_on_gpu(extents: Iterable[Extent]) -> bool:
    """Whether there are matrices to multiply.

    All else is bound by memory: loops on a core make what a disk can take, a GPU first has to get the bytes and to
    start (`tests.benchmarks.dequantize --gpu`).
    """
    return any(isinstance(operation, LowRankUpdate) for operation in _operations(extents))


_LOOPED = (BlockFp8, ToBlockFp8, BlockScales, Mxfp4, PackedInt4)


def _operations(extents: Iterable[Extent]) -> Iterator[Operation]:
    """Those of their operands too."""
    for extent in extents:
        match extent:
            case Computed(operation, operands):
                yield operation
                for operand in operands:
                    yield from _operations(operand.extents)
            case Permuted(inner):
                yield from _operations(inner)
            case _:
                pass


def merged(outer: Permuted) -> Permuted:
    """A permutation of a permuted extent, as one, where the outer reads the inner's axes whole or in pieces."""
    if len(outer.extents) != 1 or not isinstance(inner := outer.extents[0], Permuted):
        return outer
    groups = _split_axes(tuple(inner.shape[axis] for axis in inner.axes), outer.shape)
    if groups is None:
        return outer
    shape, order = _refined(inner, groups)
    return Permuted(inner.extents, shape, tuple(order[axis] for axis in outer.axes), outer.item_bytes)


def _split_axes(shape: tuple[int, ...], finer: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """`finer`'s axes, grouped by the axis of `shape` that they take apart; None where they go across."""
    groups: list[tuple[int, ...]] = []
    rest = list(finer)
    for size in shape:
        group: list[int] = []
        product = 1
        while rest and product < size:
            group.append(rest.pop(0))
            product *= group[-1]
        if product != size:
            return None
        groups.append(tuple(group) or (1,))
    return None if rest or any(group == (1,) for group in groups) else groups


def _refined(inner: Permuted, groups: list[tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The inner's stored shape in finer axes, and for each finer axis of its result the stored one."""
    by_axis = {axis: groups[place] for place, axis in enumerate(inner.axes)}
    starts: dict[int, int] = {}
    shape: list[int] = []
    for axis in range(len(inner.shape)):
        starts[axis] = len(shape)
        shape += by_axis[axis]
    order = tuple(starts[axis] + place for axis in inner.axes for place in range(len(by_axis[axis])))
    return tuple(shape), order
