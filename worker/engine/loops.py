"""Loops of dequantizing and quantizing, compiled by numba for this processor: one pass where numpy needs many."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numba  # pyright: ignore[reportMissingTypeStubs]
import numpy as np

if TYPE_CHECKING:
    from .arithmetic import Bytes, Floats, Halves

    Words = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]

_E4M3 = np.int32(0x87F00000 - 2**32)
"""Of e4m3's sign, exponent and mantissa in fp32, where its value is what it was times 2^-120."""
_E4M3_BIAS = np.float32(2.0**120)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LARGEST = np.float32(448)
_LEAST_NORMAL = np.float32(2.0**-6)
_OF_SMALL = np.float32(2.0**14)
"""fp32 from here on counts in steps of 2^-9, as e4m3 does below its least normal."""
_NO_STEPS = np.int32(_OF_SMALL.view(np.int32))
_BELOW_HALF_CODE, _CODE_BIAS, _SIGN, _ONE = np.int32(0x7FFFF), np.int32(120 << 3), np.int32(0x80), np.int32(1)
"""Of 32 bits, as what they meet: plain numbers have 64, and a vector would hold half as many."""


def _read(item: Any) -> Any:
    return numba.types.Array(item, 2, "C", readonly=True)  # pyright: ignore[reportUnknownMemberType]


_CODES, _HALVES = numba.uint8[:, ::1], numba.uint16[:, ::1]
_PAIRS = numba.uint32[:, ::1]
_FLOATS, _BLOCK = numba.float32[:, ::1], numba.types.UniTuple(numba.int64, 2)


def _compiled[Loop: Callable[..., object]](*parameters: Any) -> Callable[[Loop], Loop]:
    """Compiled here and now; kept for later processes where there is a place to keep it."""

    def compiled(loop: Loop) -> Loop:
        options: dict[str, Any] = {"signature_or_function": numba.void(*parameters), "error_model": "numpy"}
        try:
            return cast("Loop", numba.njit(**options, cache=True)(loop))
        except Exception:  # no place can be written, or what lies there is spoilt; a fault of the loop's comes again
            return cast("Loop", numba.njit(**options)(loop))

    return compiled


@_compiled(_read(numba.int8), _read(numba.float32), numba.int64, _BLOCK, _HALVES)
def to_halves(
    codes: "np.ndarray[tuple[int, int], np.dtype[np.int8]]",
    scales: "Floats",
    first: int,
    block: tuple[int, int],
    made: "Halves",
) -> None:
    """Codes [rows, columns] times their blocks' scales as bfloat16 `made`, rounded to nearest, ties to even.

    The first row of `scales` is that of the block of row `first`. Every product must be finite.
    """
    for row in range(codes.shape[0]):
        scale_row = scales[(first + row) // block[0] - first // block[0]]
        for column in range(scale_row.shape[0]):
            scale = scale_row[column]
            some = codes[row, column * block[1] : (column + 1) * block[1]]
            halves = made[row, column * block[1] : (column + 1) * block[1]]
            for place in range(some.shape[0]):
                small = np.int32((np.int32(some[place]) << 20) & _E4M3).view(np.float32)
                bits = np.float32(small * _E4M3_BIAS * scale).view(np.int32)
                odd = np.int32((bits >> 16) & 1)
                halves[place] = np.uint16(np.int32(bits + 0x7FFF + odd) >> 16)


@_compiled(_read(numba.float32), _BLOCK, _FLOATS)
def magnitudes(values: "Floats", block: tuple[int, int], largest: "Floats") -> None:
    """The largest magnitude of each block of values [rows, columns]; what is no number is the largest of all."""
    bits = largest.view(np.int32)
    for row in range(values.shape[0]):
        for column in range(bits.shape[1]):
            some = values[row, column * block[1] : (column + 1) * block[1]].view(np.int32)
            most = np.int32(0)
            for place in range(some.shape[0]):
                most = max(most, np.int32(some[place] & _MAGNITUDE))
            bits[row // block[0], column] = max(bits[row // block[0], column], most)


@_compiled(_read(numba.float32), _read(numba.float32), _BLOCK, _CODES)
def to_codes(values: "Floats", scales: "Floats", block: tuple[int, int], made: "Bytes") -> None:
    """Finite values [rows, columns] over their blocks' scales as their nearest e4m3 codes, ties to even."""
    for row in range(values.shape[0]):
        for column in range(scales.shape[1]):
            scale = scales[row // block[0], column]
            some = values[row, column * block[1] : (column + 1) * block[1]]
            codes = made[row, column * block[1] : (column + 1) * block[1]]
            for place in range(some.shape[0]):
                size = min(np.float32(abs(some[place]) / scale), _LARGEST)
                bits = np.float32(size).view(np.int32)
                odd = np.int32((bits >> 20) & _ONE)
                normal = np.int32(np.int32(np.int32(bits + _BELOW_HALF_CODE + odd) >> 20) - _CODE_BIAS)
                steps = np.int32(np.float32(size + _OF_SMALL).view(np.int32) - _NO_STEPS)
                sign = np.int32((np.float32(some[place]).view(np.int32) >> 24) & _SIGN)
                codes[place] = np.uint8(np.int32((steps if size < _LEAST_NORMAL else normal) | sign))


@numba.njit(inline="always")
def _twice(code: np.int32) -> np.float32:
    """The double of an e2m1 code without its sign: 0 1 2 3 4 6 8 12.

    By integers, since numbers below fp32's least normal, as which its bits would be read, are slow on some processors.
    """
    over_four, over_six = np.int32(code - 4), np.int32(code - 6)
    return np.float32(np.int32(code + max(over_four, np.int32(0)) + 2 * max(over_six, np.int32(0))))


@_compiled(_read(numba.uint8), _read(numba.uint8), _PAIRS)
def mxfp4(codes: "Bytes", exponents: "Bytes", made: "Words") -> None:
    """Bytes of two e2m1 codes, low half first, [groups, n] times a power of two [groups, 1], as pairs of bfloat16.

    Every product must be finite; it needs no rounding.
    """
    for group in range(codes.shape[0]):
        exponent = np.int32(exponents[group, 0])
        half = np.int32(exponent - 1 << 23 if exponent > 1 else 1 << 21 + exponent).view(np.float32)
        some, pairs = codes[group], made[group]
        for place in range(some.shape[0]):
            pair = np.int32(some[place])
            low = np.float32(_twice(np.int32(pair & 7)) * half).view(np.uint32)
            high = np.float32(_twice(np.int32((pair >> 4) & 7)) * half).view(np.uint32)
            signs = np.uint32(np.int32((pair & 8) << 12) | np.int32((pair & 128) << 24))
            pairs[place] = np.uint32(np.uint32(low >> 16) | np.uint32(high & 0xFFFF0000) | signs)


@_compiled(_read(numba.uint8), _read(numba.float32), _PAIRS)
def int4(codes: "Bytes", scales: "Floats", made: "Words") -> None:
    """Bytes of two codes, low half first and offset by 8, [groups, n] times a scale [groups, 1], as pairs of bfloat16.

    Rounded to nearest, ties to even. Every product must be finite.
    """
    for group in range(codes.shape[0]):
        scale = scales[group, 0]
        some, pairs = codes[group], made[group]
        for place in range(some.shape[0]):
            pair = np.int32(some[place])
            low = np.float32(np.float32((pair & 15) - 8) * scale).view(np.uint32)
            high = np.float32(np.float32((pair >> 4) - 8) * scale).view(np.uint32)
            low_bits = np.uint32(low + 0x7FFF + (low >> 16 & 1))
            high_bits = np.uint32(high + 0x7FFF + (high >> 16 & 1))
            pairs[place] = np.uint32(low_bits >> 16 | high_bits & 0xFFFF0000)
