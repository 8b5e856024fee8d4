"""The inner loops of block-fp8, compiled by numba for this processor: one pass over memory where numpy needs seven."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numba  # pyright: ignore[reportMissingTypeStubs]
import numpy as np

if TYPE_CHECKING:
    from .arithmetic import Bytes, Floats, Halves

_PLACES = np.int32(0x87F00000 - 2**32)
"""Of e4m3's sign, exponent and mantissa in fp32, where its value is what it was times 2^-120."""
_TAKEN_BACK = np.float32(2.0**120)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LARGEST = np.float32(448)
_LEAST_NORMAL = np.float32(2.0**-6)
_OF_SMALL = np.float32(2.0**14)
"""fp32 from here on counts in steps of 2^-9, as e4m3 does below its least normal."""


def _read(item: Any) -> Any:
    return numba.types.Array(item, 2, "C", readonly=True)  # pyright: ignore[reportUnknownMemberType]


_CODES, _HALVES = numba.uint8[:, ::1], numba.uint16[:, ::1]
_FLOATS, _BLOCK = numba.float32[:, ::1], numba.types.UniTuple(numba.int64, 2)


def _compiled[Loop: Callable[..., object]](*parameters: Any) -> Callable[[Loop], Loop]:
    """Compiled here and now; kept for later processes where there is a place to keep it."""

    def compiled(loop: Loop) -> Loop:
        options: dict[str, Any] = {"signature_or_function": numba.void(*parameters), "error_model": "numpy"}
        try:
            return cast("Loop", numba.njit(**options, cache=True)(loop))
        except RuntimeError:  # neither this folder nor the user's own can be written
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
                small = np.int32((np.int32(some[place]) << 20) & _PLACES).view(np.float32)
                bits = np.float32(small * _TAKEN_BACK * scale).view(np.int32)
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
                odd = np.int32((bits >> 20) & 1)
                normal = (np.int32(bits + 0x7FFFF + odd) >> 20) - (120 << 3)
                steps = np.float32(size + _OF_SMALL).view(np.int32) - np.float32(_OF_SMALL).view(np.int32)
                sign = (np.float32(some[place]).view(np.int32) >> 24) & 0x80
                codes[place] = np.uint8((steps if size < _LEAST_NORMAL else normal) | sign)
