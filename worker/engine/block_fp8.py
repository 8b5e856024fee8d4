"""Block-fp8 by numpy, both ways: a weight as e4m3 codes with a scale for each block of it."""

from collections.abc import Callable

import numpy as np

from ..checkpoints.operations import BlockFp8, BlockScales, ToBlockFp8
from .arithmetic import Bytes, Floats, narrowed, not_finite, widened
from .rooms import Ints, room

FP8_MAX = 448.0
_NAN = 0x7F
_LEAST_NORMAL = 2.0**-6
_LONG = 8192
"""numpy copies shorter rows about before it computes with one that they share."""


def dequantized(operation: BlockFp8, weight: Bytes, scale: Bytes, first: int, rows: int) -> Bytes:
    """Codes times their blocks' scales; the first row of `scale` is that of the block that holds row `first`."""
    scales = widened(scale, operation.scale_dtype).reshape(-1, -(-operation.columns // operation.block_columns))
    codes = weight.reshape(rows, operation.columns)
    if operation.dtype != "BF16" or not _ordinary(scales) or _holds_nan(codes):
        products = fp8_values(codes)
        with np.errstate(invalid="ignore"):  # what is no number stays none
            _by_block(np.multiply, products, scales, operation, first)
        return narrowed(products, operation.dtype)
    return _halves(_products(codes, scales, operation, first), ties=_make_ties(scales))


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


def _ordinary(scales: Floats) -> bool:
    """No product with a code becomes subnormal or infinite."""
    sizes = np.abs(scales)
    return bool((((sizes >= 2.0**-100) | (sizes == 0)) & (sizes < 128)).all())


def _make_ties(scales: Floats) -> bool:
    """Whether some product with a code lies in the middle between two of bfloat16: its mantissa is one of eight."""
    products = np.multiply.outer(_MANTISSAS, scales).view(np.uint16)
    return bool((products[..., ::2] == 0x8000).any())


_MANTISSAS = np.arange(8, 16, dtype=np.float32)


def _products(codes: Bytes, scales: Floats, operation: BlockFp8, first: int) -> Ints:
    """The bits of the products in fp32.

    A code's bits moved to fp32's places are its value times 2^-120, subnormals included; the scale takes that back.
    """
    bits = room("products", codes.size).reshape(codes.shape)
    np.copyto(bits, codes.view(np.int8))
    bits <<= 20
    bits &= np.int32(0x87F00000 - 2**32)
    _by_block(np.multiply, bits.view(np.float32), scales * np.float32(2.0**120), operation, first)
    return bits


def _by_block(
    compute: Callable[..., object], values: Floats, scales: Floats, operation: BlockFp8 | ToBlockFp8, first: int
) -> None:
    """Every value with its block's scale, in place; the first row of `scales` is that of the block of row `first`."""
    rows, columns = values.shape
    together = -(-_LONG // columns)
    spread = np.broadcast_to(
        scales[:, None, :, None], (len(scales), together, scales.shape[1], operation.block_columns)
    )
    long = spread.reshape(len(scales), together, -1)[..., :columns].reshape(len(scales), together * columns)
    start = 0
    for scale_row in long:
        end = min(rows, ((first + start) // operation.block_rows + 1) * operation.block_rows - first)
        even = end - (end - start) % together
        some = values[start:even].reshape(-1, together * columns)
        compute(some, scale_row, out=some)
        compute(values[even:end], scale_row[:columns], out=values[even:end])
        start = end


def _halves(bits: Ints, *, ties: bool) -> Bytes:
    """fp32 as bfloat16, rounded to nearest; to even only where ties are said to be among them."""
    flat = bits.reshape(-1)
    if ties:
        odd = np.right_shift(flat, 16, out=room("odd", flat.size))
        odd &= 1
        odd += 0x7FFF
        flat += odd
    else:
        flat += 0x8000
    flat >>= 16
    halves = room("halves", flat.size).view(np.uint16)[: flat.size]
    np.copyto(halves, flat, casting="unsafe")
    return halves.view(np.uint8)


def quantized(operation: ToBlockFp8, weight: Bytes, rows: int) -> Bytes:
    """Codes of whole blocks of rows, under their `scales`. BadInputError where a value is not finite."""
    values = widened(weight, operation.source).reshape(rows, operation.columns)
    magnitudes = _magnitudes(values)
    scales = _scales(magnitudes, operation)
    quotients = magnitudes.view(np.float32)
    _by_block(np.divide, quotients, scales, operation, 0)
    if scales.min() < np.finfo(np.float32).tiny:  # such a scale was rounded by much
        np.minimum(quotients, np.float32(FP8_MAX), out=quotients)
    return _codes(values, quotients)


def scales(operation: BlockScales, weight: Bytes) -> Bytes:
    """A block's largest magnitude over e4m3's. BadInputError where a value is not finite: fp8 could not hold it."""
    values = widened(weight, operation.source).reshape(-1, operation.columns)
    return _scales(_magnitudes(values), operation).reshape(-1).view(np.uint8)


def _magnitudes(values: Floats) -> Ints:
    return np.bitwise_and(
        values.view(np.int32), np.int32(0x7FFFFFFF), out=room("magnitudes", values.size).reshape(values.shape)
    )


def _scales(magnitudes: Ints, operation: ToBlockFp8 | BlockScales) -> Floats:
    """fp32 that is not negative is in the order of its bits; infinity and NaN are the largest."""
    rows, columns = magnitudes.shape
    tall = range(0, rows, operation.block_rows)
    by_row = np.stack([magnitudes[start : start + operation.block_rows].max(axis=0) for start in tall])
    largest = np.maximum.reduceat(by_row, np.arange(0, columns, operation.block_columns), axis=1)
    if (largest >= 0x7F800000).any():
        raise not_finite()
    found = largest.view(np.float32) / np.float32(FP8_MAX)
    return np.where(found == 0, np.float32(1), found)


def _codes(values: Floats, quotients: Floats) -> Bytes:
    """Magnitudes within e4m3's range, which are made something else, as their nearest codes, ties to even."""
    flat = quotients.reshape(-1)
    # Below the least normal, codes are multiples of 2^-9.
    small = np.flatnonzero(flat < _LEAST_NORMAL)
    small_codes = np.rint(flat[small] * 512)
    bits = flat.view(np.int32)
    odd = np.right_shift(bits, 20, out=room("odd", bits.size))
    odd &= 1
    odd += 0x7FFFF - (120 << 23)
    bits += odd
    bits >>= 20
    codes = room("codes", bits.size).view(np.uint8)[: bits.size]
    np.copyto(codes, bits, casting="unsafe")
    codes[small] = small_codes
    signs = np.right_shift(values.reshape(-1).view(np.int32), 24, out=odd)
    signs &= 0x80
    short = room("signs", bits.size).view(np.uint8)[: bits.size]
    np.copyto(short, signs, casting="unsafe")
    codes |= short
    return codes
