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
from .rooms import room

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Halves = np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

FP8_MAX = 448.0
"""The largest of e4m3."""

Arithmetic = Callable[[Operation, tuple[Bytes, ...], int, int], Bytes]
"""(operation, operands' bytes, first row, rows) -> the rows' bytes. An operand that several rows share begins with the
group that holds the first row. What it answers holds until its next call in the same thread."""


def compute(operation: Operation, operands: tuple[Bytes, ...], first: int, rows: int) -> Bytes:
    """`rows` rows of the result from row `first`. BadInputError where a finite value has no finite place in a dtype."""
    match operation:
        case Cast(source, dtype, factor):
            values = widened(operands[0], source)
            return narrowed(values if factor == 1 else values * np.float32(factor), dtype)
        case BlockFp8():
            from .block_fp8 import dequantized

            return dequantized(operation, operands[0], operands[1], first, rows)
        case Mxfp4(dtype):
            from .four_bits import mxfp4

            return mxfp4(operands[0], operands[1], dtype)
        case PackedInt4():
            from .four_bits import packed_int4

            return packed_int4(operation, operands[0], operands[1], rows)
        case ToBlockFp8():
            from .block_fp8 import quantized

            return quantized(operation, operands[0], rows)
        case BlockScales():
            from .block_fp8 import scales

            return scales(operation, operands[0])
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
            rounded = np.empty(values.size, np.uint16)
            for start in range(0, values.size, _AT_ONCE):
                _round(values[start : start + _AT_ONCE], rounded[start : start + _AT_ONCE])
            return rounded.view(np.uint8)
        case "F16":
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16)
            if np.any(np.isinf(halves) & np.isfinite(values)):
                raise too_large(_largest(values), dtype)
            return halves.view(np.uint8)
        case _:
            return values.view(np.uint8)


_AT_ONCE = 2**19
_LEAST_INFINITE = np.array(0x7F7F8000, np.uint32).view(np.float32)[()]
"""fp32 from here on is infinite in bfloat16."""


def _round(values: Floats, halves: Halves) -> None:
    """fp32 -> bfloat16."""
    bits = values.view(np.int32)
    odd = np.right_shift(bits, 16, out=room("odd", bits.size))
    odd &= 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    np.copyto(halves, odd, casting="unsafe")
    if not (values.max() < _LEAST_INFINITE and values.min() > -_LEAST_INFINITE):
        _mend(values, halves)


def _mend(values: Floats, halves: Halves) -> None:
    """What is no number stays none: rounding must not carry its payload into its exponent."""
    if np.any(np.isfinite(values) & (np.abs(values) >= _LEAST_INFINITE)):
        raise too_large(_largest(values), "BF16")
    nans = np.isnan(values)
    halves[nans] = ((values.view(np.uint32)[nans] >> 16) | 0x40).astype(np.uint16)


def _largest(values: Floats) -> float:
    return float(np.abs(values[np.isfinite(values)]).max())


def ordinary(scales: Floats) -> bool:
    """No product of a scale with a number of four or eight bits is infinite, in bfloat16 either."""
    return bool((np.abs(scales) < 2.0**118).all())


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
