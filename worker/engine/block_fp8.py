"""Block-fp8, both ways: a weight as e4m3 codes with a scale for each block of it."""

import numpy as np

from ..checkpoints.operations import BlockFp8, BlockScales, ToBlockFp8
from . import loops
from .arithmetic import FP8_MAX, Bytes, Floats, narrowed, not_finite, ordinary, widened
from .rooms import room

_NAN = 0x7F


def dequantized(operation: BlockFp8, weight: Bytes, scale: Bytes, first: int, rows: int) -> Bytes:
    """Codes times their blocks' scales; the first row of `scale` is that of the block that holds row `first`."""
    scales = widened(scale, operation.scale_dtype).reshape(-1, -(-operation.columns // operation.block_columns))
    codes = weight.reshape(rows, operation.columns)
    if operation.dtype != "BF16" or _holds_nan(codes) or not ordinary(scales):
        return narrowed(_products(operation, codes, scales, first), operation.dtype)
    made = room("halves", codes.size).view(np.uint16)[: codes.size]
    block = (operation.block_rows, operation.block_columns)
    loops.to_halves(codes.view(np.int8), scales, first, block, made.reshape(codes.shape))
    return made.view(np.uint8)


def _products(operation: BlockFp8, codes: Bytes, scales: Floats, first: int) -> Floats:
    rows, columns = codes.shape
    blocks = (first + np.arange(rows)) // operation.block_rows - first // operation.block_rows
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number stays none
        return fp8_values(codes) * np.repeat(scales, operation.block_columns, axis=1)[blocks, :columns]


def fp8_values(codes: Bytes) -> Floats:
    """e4m3 codes as fp32: no infinities, one NaN a sign."""
    return _VALUES[codes]


def _values() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[(codes & 0x7F) == _NAN] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


_VALUES = _values()


def _holds_nan(codes: Bytes) -> bool:
    """0x7F is the largest of signed bytes, 0xFF of unsigned ones: nothing need be made to find them."""
    return bool(codes.view(np.int8).max() == _NAN or codes.max() == _NAN + 0x80)


def quantized(operation: ToBlockFp8, weight: Bytes, rows: int) -> Bytes:
    """Codes of whole blocks of rows, under their `scales`. BadInputError where a value is not finite."""
    values = widened(weight, operation.source).reshape(rows, operation.columns)
    made = room("codes", values.size).view(np.uint8)[: values.size].reshape(values.shape)
    block = (operation.block_rows, operation.block_columns)
    loops.to_codes(values, _scales(values, operation), block, made)
    return made.reshape(-1)


def scales(operation: BlockScales, weight: Bytes) -> Bytes:
    """A block's largest magnitude over e4m3's. BadInputError where a value is not finite: fp8 could not hold it."""
    values = widened(weight, operation.source).reshape(-1, operation.columns)
    return _scales(values, operation).reshape(-1).view(np.uint8)


def _scales(values: Floats, operation: ToBlockFp8 | BlockScales) -> Floats:
    rows, columns = values.shape
    largest = np.zeros((-(-rows // operation.block_rows), -(-columns // operation.block_columns)), np.float32)
    loops.magnitudes(values, (operation.block_rows, operation.block_columns), largest)
    if not np.isfinite(largest).all():
        raise not_finite()
    found = largest / np.float32(FP8_MAX)
    return np.where(found == 0, np.float32(1), found)
