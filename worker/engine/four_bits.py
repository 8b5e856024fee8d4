"""Weights of four bits by numpy: mxfp4, and int4 packed eight to a word. Two codes make a byte, which is looked up."""

from functools import cache

import numpy as np

from ..checkpoints.operations import PackedInt4
from .arithmetic import Bytes, Floats, narrowed, widened

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_PAIRS = 16
"""Bytes of a group of 32, in mxfp4."""
_LARGEST_EXPONENT = {"BF16": 252, "F32": 252, "F16": 140}
"""Under which six, the largest of e2m1, is finite."""


def mxfp4(codes: Bytes, exponents: Bytes, dtype: str) -> Bytes:
    """Products of e2m1 codes, low half first, and a power of two for each 32 of them."""
    if exponents.max(initial=0) > _LARGEST_EXPONENT[dtype]:
        return narrowed(_mxfp4_values(codes.reshape(-1, _PAIRS), exponents), dtype)
    places = np.empty((len(exponents), _PAIRS), np.intp)
    np.copyto(places, codes.reshape(-1, _PAIRS))
    high = exponents.astype(np.intp) << 8
    for place in range(_PAIRS):  # sixteen long sums are faster than one of many short rows
        places[:, place] += high
    return np.take(_mxfp4_table(dtype), places.reshape(-1), mode="clip").view(np.uint8)


def _mxfp4_values(pairs: Bytes, exponents: Bytes) -> Floats:
    """[groups, n] bytes, [groups] exponents -> [groups, 2n]."""
    powers = np.where(exponents == 0, np.float32(2.0**-127), (exponents.astype(np.uint32) << 23).view(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):  # an exponent may be infinite; zero times that is no number
        return _of_pairs(_E2M1)[pairs].view(np.float32) * powers[:, None]


@cache
def _mxfp4_table(dtype: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint32 | np.uint64]]":
    """Two results, as one number, for each byte under each exponent."""
    largest = _LARGEST_EXPONENT[dtype]
    pairs = np.tile(np.arange(256, dtype=np.uint8), (largest + 1, 1))
    results = narrowed(_mxfp4_values(pairs, np.arange(largest + 1, dtype=np.uint8)), dtype)
    return results.view(np.uint64) if dtype == "F32" else results.view(np.uint32)


def _of_pairs(values: Floats) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
    """The two values of each byte, the low half's first, as one number."""
    codes = np.arange(256)
    return np.stack((values[codes & 15], values[codes >> 4]), axis=1).view(np.uint64).reshape(-1)


_INT4 = _of_pairs(np.arange(-8, 8, dtype=np.float32))


def packed_int4(operation: PackedInt4, packed: Bytes, scale: Bytes, rows: int) -> Bytes:
    """Codes, low bits first and offset by 8, times the scale of their group."""
    values = np.take(_INT4, packed, mode="clip").view(np.float32).reshape(rows, -1)[:, : operation.columns]
    scales = widened(scale, operation.scale_dtype).reshape(rows, -1)
    if operation.columns % operation.group_columns == 0:
        grouped = values.reshape(*scales.shape, operation.group_columns)
        grouped *= scales[..., None]
        return narrowed(grouped, operation.dtype)
    spread = np.repeat(scales, operation.group_columns, axis=1)[:, : operation.columns]
    return narrowed(values * spread, operation.dtype)
