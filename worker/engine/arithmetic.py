"""Operations carried out by numpy: in fp32, rounded once; bfloat16, which numpy lacks, as bits."""

from collections.abc import Callable

import numpy as np

from ..checkpoints.operations import (
    BlockFp8,
    BlockScales,
    Cast,
    Drawn,
    LowRankUpdate,
    Mxfp4,
    Operation,
    PackedInt4,
    RowNorms,
    ToBlockFp8,
)
from ..jobs.errors import BadInputError

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int32]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

Arithmetic = Callable[[Operation, tuple[Bytes, ...], int, int], Bytes]
"""(operation, operands' bytes, first row, rows) -> the rows' bytes. An operand that several rows share begins with the
group that holds the first row. What it answers holds until its next call."""

FP8_MAX = 448.0
_FP8_NAN = 0x7F
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def compute(operation: Operation, operands: tuple[Bytes, ...], first: int, rows: int) -> Bytes:
    """`rows` rows of the result from row `first`. BadInputError where a finite value has no finite place in a dtype."""
    match operation:
        case Cast(source, dtype, factor):
            values = widened(operands[0], source)
            return narrowed(values if factor == 1 else values * np.float32(factor), dtype)
        case BlockFp8():
            return _block_fp8(operation, operands[0], operands[1], first, rows)
        case Mxfp4(dtype):
            return _mxfp4(operands[0], operands[1], dtype)
        case PackedInt4():
            return _packed_int4(operation, operands[0], operands[1], rows)
        case ToBlockFp8():
            values = widened(operands[0], operation.source).reshape(rows, operation.columns)
            return _to_fp8(values / _spread(scales_of(values, operation), operation, 0, rows))
        case BlockScales():
            values = widened(operands[0], operation.source).reshape(-1, operation.columns)
            return scales_of(values, operation).reshape(-1).view(np.uint8)
        case RowNorms(columns, source, dtype):
            values = widened(operands[0], source).reshape(rows, columns).astype(np.float64)
            return narrowed(np.sqrt(np.square(values).sum(axis=1)).astype(np.float32), dtype)
        case Drawn():
            from .drawing import drawn

            return narrowed(drawn(operation, first, rows), operation.dtype)
        case LowRankUpdate():
            from .low_rank import updated

            return updated(operation, operands, first, rows)


def widened(data: Bytes, dtype: str) -> Floats:
    """Any float dtype as fp32, which holds each exactly."""
    match dtype:
        case "BF16":
            bits = np.empty(data.size // 2, np.uint32)
            np.left_shift(data.view(np.uint16), 16, out=bits, dtype=np.uint32)
            return bits.view(np.float32)
        case "F16":
            return data.view(np.float16).astype(np.float32)
        case _:
            return data.view(np.float32)


def narrowed(values: Floats, dtype: str) -> Bytes:
    """fp32 rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values).reshape(-1)
    match dtype:
        case "BF16":
            rounded = _bf16(values)
            infinite = (rounded & 0x7FFF) == 0x7F80
            if infinite.any() and np.isfinite(values[infinite]).any():
                raise too_large(_largest(values), dtype)
            return rounded.view(np.uint8)
        case "F16":
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if np.any(np.isinf(halves) & np.isfinite(values)):
                raise too_large(_largest(values), dtype)
            return halves.view(np.uint8)
        case _:
            return values.view(np.uint8)


def _bf16(values: Floats) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]":
    bits = values.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    odd += bits
    rounded = odd.view(np.uint16)[1::2].copy()
    nans = np.isnan(values)
    if nans.any():
        # Rounding must not carry a NaN's payload into its exponent.
        rounded[nans] = ((bits[nans] >> 16) | 0x40).astype(np.uint16)
    return rounded


def _block_fp8(operation: BlockFp8, weight: Bytes, scale: Bytes, first: int, rows: int) -> Bytes:
    scales = widened(scale, operation.scale_dtype).reshape(-1, -(-operation.columns // operation.block_columns))
    codes = weight.reshape(rows, operation.columns)
    whole = operation.columns % operation.block_columns == 0
    if not whole or operation.dtype != "BF16" or not _ordinary(scales) or _holds_nan(codes):
        with np.errstate(invalid="ignore"):  # what is no number stays none
            return narrowed(fp8_values(codes) * _spread(scales, operation, first, rows), operation.dtype)
    products = _block_fp8_products(codes, scales, operation, first)
    return _halves(products, ties=_make_ties(scales))


def _ordinary(scales: Floats) -> bool:
    """No product with a code becomes subnormal or infinite."""
    sizes = np.abs(scales)
    return bool((((sizes >= 2.0**-100) | (sizes == 0)) & (sizes < 128)).all())


def _make_ties(scales: Floats) -> bool:
    """Whether some product with a code lies in the middle between two of bfloat16: its mantissa is one of eight."""
    products = np.multiply.outer(_MANTISSAS, scales).view(np.uint16)
    return bool((products[..., ::2] == 0x8000).any())


_MANTISSAS = np.arange(8, 16, dtype=np.float32)


def _block_fp8_products(codes: Bytes, scales: Floats, operation: BlockFp8, first: int) -> Ints:
    """The bits of the products in fp32.

    A code's bits moved to fp32's places are its value times 2^-120, subnormals included; the scale takes that back.
    """
    rows, columns = codes.shape
    bits = _room(0, rows, columns)
    np.copyto(bits, codes.view(np.int8))
    bits <<= 20
    bits &= np.int32(0x87F00000 - 2**32)
    values = bits.view(np.float32)
    together = -(-_LONG // columns)
    large = np.empty((len(scales), together, scales.shape[1], operation.block_columns), np.float32)
    large[:] = (scales * np.float32(2.0**120))[:, None, :, None]
    large = large.reshape(len(scales), together * columns)
    done = 0
    while done < rows:
        band = (first + done) // operation.block_rows - first // operation.block_rows
        upto = min(rows, (band + first // operation.block_rows + 1) * operation.block_rows - first)
        even = upto - (upto - done) % together
        values[done:even].reshape(-1, together * columns)[:] *= large[band]
        values[even:upto] *= large[band, :columns]
        done = upto
    return bits


_LONG = 8192
"""numpy copies shorter rows about before it multiplies them by one that they share."""


def _halves(bits: Ints, ties: bool) -> Bytes:
    """fp32 as bfloat16, rounded to nearest; to even only where ties are said to be among them."""
    if ties:
        odd = np.right_shift(bits, 16, out=_room(1, *bits.shape))
        odd &= 1
        odd += 0x7FFF
        bits += odd
    else:
        bits += 0x8000
    bits >>= 16
    halves = _room(2, *bits.shape).view(np.uint16).reshape(-1)[: bits.size]
    np.copyto(halves, bits.reshape(-1), casting="unsafe")
    return halves.view(np.uint8)


_ROOMS: dict[int, Ints] = {}
"""Memory used again and again: fresh arrays cost more in page faults than the arithmetic does."""


def _room(number: int, rows: int, columns: int) -> Ints:
    room = _ROOMS.get(number)
    if room is None or room.size < rows * columns:
        room = _ROOMS[number] = np.empty(rows * columns, np.int32)
    return room[: rows * columns].reshape(rows, columns)


def _holds_nan(codes: Bytes) -> bool:
    """0x7F is the largest of signed bytes, 0xFF of unsigned ones: nothing need be made to find them."""
    return bool(codes.view(np.int8).max() == _FP8_NAN or codes.max() == _FP8_NAN + 0x80)


def fp8_values(codes: Bytes) -> Floats:
    """e4m3 codes as fp32: no infinities, one NaN a sign."""
    return _FP8[codes]


def _fp8_table() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values[(codes & 0x7F) == _FP8_NAN] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


_FP8 = _fp8_table()


def _spread(scales: Floats, operation: BlockFp8 | ToBlockFp8, first: int, rows: int) -> Floats:
    """A scale for every element of rows from `first` on; the first row of `scales` is that of its block."""
    offset = first % operation.block_rows
    tall = np.repeat(scales, operation.block_rows, axis=0)[offset : offset + rows]
    return np.repeat(tall, operation.block_columns, axis=1)[:, : operation.columns]


def scales_of(values: Floats, operation: ToBlockFp8 | BlockScales) -> Floats:
    """A block's largest magnitude over e4m3's. BadInputError where a value is not finite: fp8 could not hold it."""
    if not np.isfinite(values).all():
        raise not_finite()
    rows, columns = values.shape
    starts = [
        np.arange(0, size, step) for size, step in ((rows, operation.block_rows), (columns, operation.block_columns))
    ]
    largest = np.maximum.reduceat(np.maximum.reduceat(np.abs(values), starts[0], axis=0), starts[1], axis=1)
    scales = (largest / np.float32(FP8_MAX)).astype(np.float32)
    return np.where(scales == 0, np.float32(1), scales)


def _to_fp8(values: Floats) -> Bytes:
    """fp32 within e4m3's range, rounded to its nearest code, ties to even."""
    bits = values.reshape(-1).view(np.uint32)
    magnitude = np.minimum(np.abs(values.reshape(-1)), np.float32(FP8_MAX))
    # Normal codes: keep three bits of the mantissa. Below 2^-6, codes are multiples of 2^-9.
    normal = magnitude.view(np.uint32)
    normal = (normal + 0x7FFFF + ((normal >> 20) & 1)) >> 20
    codes = np.where(magnitude < 2.0**-6, np.rint(magnitude * 512).astype(np.uint32), normal - (120 << 3))
    return (codes | (bits >> 24 & 0x80)).astype(np.uint8)


def _mxfp4(codes: Bytes, exponents: Bytes, dtype: str) -> Bytes:
    pairs = codes.reshape(-1, 16)
    values = np.empty((len(pairs), 16, 2), np.float32)
    values[:, :, 0] = _E2M1[pairs & 15]
    values[:, :, 1] = _E2M1[pairs >> 4]
    powers = np.where(exponents == 0, np.float32(2.0**-127), (exponents.astype(np.uint32) << 23).view(np.float32))
    return narrowed(values.reshape(-1, 32) * powers[:, None], dtype)


def _packed_int4(operation: PackedInt4, packed: Bytes, scale: Bytes, rows: int) -> Bytes:
    words = packed.view(np.uint32).reshape(rows, -1)
    codes = np.empty((*words.shape, 8), np.float32)
    for place in range(8):
        codes[..., place] = (words >> (4 * place)) & 15
    codes -= 8
    values = codes.reshape(rows, -1)[:, : operation.columns]
    scales = widened(scale, operation.scale_dtype).reshape(rows, -1)
    spread = np.repeat(scales, operation.group_columns, axis=1)[:, : operation.columns]
    return narrowed(values * spread, operation.dtype)


def _largest(values: Floats) -> float:
    return float(np.abs(values[np.isfinite(values)]).max())


def too_large(value: float, dtype: str) -> BadInputError:
    """A finite value that a dtype cannot hold."""
    return BadInputError(
        "bad_tensor",
        f"a value to be written as {dtype}",
        found=f"{value!r}, which is infinite there",
        expected=f"values that {dtype} holds",
        next_step="Choose another dtype; BF16 and F32 have the range of fp32.",
    )


def not_finite() -> BadInputError:
    """A value that fp8 has no code for."""
    return BadInputError(
        "bad_tensor",
        "a weight to be quantized",
        found="a value that is infinite or no number",
        expected="finite values",
        next_step="Look for what broke the checkpoint, or write it unquantized.",
    )
