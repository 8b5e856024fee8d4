"""What a merge changes: the norm of each touched tensor's change, and that there is any."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isfinite, prod, sqrt

from ..adapters.merged_source import MergedSource
from ..checkpoints.extents import Extent
from ..checkpoints.operations import LowRankUpdate, band_rows
from ..engine.computed import shared_operand
from ..engine.reading import SourceFiles
from ..jobs.errors import BadInputError
from ..mapping.blocks import Address

_BLOCK_BYTES = 8 * 2**20
_BLOCK_ROWS = 64
"""Products are made of so many rows at a time."""

Norms = Mapping[str, float | None]


def planned_norms(merged: MergedSource) -> Norms:
    """Of each touched tensor the norm of its factors' product; None where values tell: DoRA's, and saved tensors'.

    BadInputError where a factor or a magnitude is not finite.
    """
    files = SourceFiles()
    try:
        products = {str(address): _product_norm(merged, address, files) for address in merged.updates}
    finally:
        files.close()
    return products | {str(address): None for address in _by_values(merged)}


def refuse_no_change(merged: MergedSource, norms: Norms) -> None:
    """BadInputError where no value will be another one; reads up to the first that is."""
    addresses = dict.fromkeys((*merged.updates, *_by_values(merged)))
    for address in addresses:
        if norms[str(address)] != 0 and any(_differs(merged, address, *block) for block in _blocks(merged, address)):
            return
    raise BadInputError(
        "bad_tensor",
        "the adapters of this merge",
        found="nothing to add: no value of the base would be another one",
        expected="a change of the base",
        next_step="Check that the adapter was trained, and its alpha and weight; an untouched base is a copy.",
    )


def measured_norms(merged: MergedSource, threads: int, report: Callable[[int, int], None]) -> Mapping[str, float]:
    """Those that values alone tell, by making them once more. BadInputError where a value is not finite.

    `report` is told of bytes done, and of how many there are.
    """
    addresses = tuple(_by_values(merged))
    sizes = [_bytes(merged, address) for address in addresses]
    found: dict[str, float] = {}
    with ThreadPoolExecutor(threads) as pool:
        norms = pool.map(partial(_norm, merged), addresses)
        for done, (address, norm) in enumerate(zip(addresses, norms, strict=True), 1):
            found[str(address)] = _finite(str(address), norm)
            report(sum(sizes[:done]), sum(sizes))
    return found


def _by_values(merged: MergedSource) -> Iterator[Address]:
    for address, pairs in merged.updates.items():
        if address.name in merged.replaced or any(pair.factors.magnitude for pair in pairs):
            yield address
    yield from (Address(name) for name in merged.replaced if name not in merged.touched)


def _product_norm(merged: MergedSource, address: Address, files: SourceFiles) -> float:
    from ..engine.low_rank import delta_norm

    update = merged.update(address)
    assert isinstance(update.operation, LowRankUpdate)
    shared = tuple(shared_operand(operand, number, files.anew) for number, operand in enumerate(update.operands[1:]))
    return _finite(str(address), delta_norm(update.operation, shared))


def _norm(merged: MergedSource, address: Address) -> float:
    from ..engine.difference import squared_difference

    dtype = merged.tensors[address.name].dtype
    return sqrt(sum(squared_difference(*_both(merged, address, *block), dtype) for block in _blocks(merged, address)))


def _differs(merged: MergedSource, address: Address, start: int, rows: int) -> bool:
    from ..engine.difference import differs

    return differs(*_both(merged, address, start, rows), merged.tensors[address.name].dtype)


def _both(
    merged: MergedSource, address: Address, start: int, rows: int
) -> tuple[tuple[Extent, ...], tuple[Extent, ...]]:
    after = merged.rows(address.name, address.index, start, rows)
    return after, merged.rows_before(address.name, address.index, start, rows)


def _blocks(merged: MergedSource, address: Address) -> Iterator[tuple[int, int]]:
    """(first row, rows), so many as are best made together."""
    tensor = merged.tensors[address.name]
    height, *width = tensor.shape[len(address.index) :]
    each = max(1, _BLOCK_BYTES // max(1, prod(width) * tensor.item_bytes) // _BLOCK_ROWS) * _BLOCK_ROWS
    if address in merged.updates:
        each = max(each, band_rows(merged.update(address).operation))
    for start in range(0, height, each):
        yield start, min(each, height - start)


def _bytes(merged: MergedSource, address: Address) -> int:
    tensor = merged.tensors[address.name]
    return prod(tensor.shape[len(address.index) :]) * tensor.item_bytes


def _finite(name: str, norm: float) -> float:
    if isfinite(norm):
        return float(f"{norm:.6g}")
    raise BadInputError(
        "bad_tensor",
        f"base tensor {name!r}",
        found="a change that is not finite",
        expected="numbers in the adapter's tensors, and no row of zeros under a magnitude",
        next_step="Check the adapter for NaN and infinite values: its training may have diverged.",
    )
