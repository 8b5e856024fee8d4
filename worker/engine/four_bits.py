"""Weights of four bits: mxfp4, and int4 packed eight to a word. Two codes make a byte."""

import numpy as np

from ..checkpoints.operations import PackedInt4
from . import loops
from .arithmetic import Bytes, Floats, narrowed, ordinary, widened
from .rooms import room

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_INT4 = np.arange(-8, 8, dtype=np.float32)
_PAIRS = 16
"""Bytes of a group of 32, in mxfp4."""
_LARGEST_EXPONENT = 252
"""Under which six, the largest of e2m1, is finite."""


def mxfp4(codes: Bytes, exponents: Bytes, dtype: str) -> Bytes:
    """Products of e2m1 codes, low half first, and a power of two for each 32 of them."""
    pairs = codes.reshape(-1, _PAIRS)
    if dtype == "BF16" and exponents.max(initial=0) <= _LARGEST_EXPONENT:
        made = room("halves", pairs.size).view(np.uint32)
        loops.mxfp4(pairs, exponents.reshape(-1, 1), made.reshape(pairs.shape))
        return made.view(np.uint8)
    powers = np.where(exponents == 0, np.float32(2.0**-127), (exponents.astype(np.uint32) << 23).view(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):  # an exponent may be infinite; zero times that is no number
        return narrowed(_values(pairs, _E2M1) * powers[:, None], dtype)


def packed_int4(operation: PackedInt4, packed: Bytes, scale: Bytes, rows: int) -> Bytes:
    """Codes, low bits first and offset by 8, times the scale of their group."""
    columns, group = operation.columns, operation.group_columns
    scales = widened(scale, operation.scale_dtype).reshape(rows, -1)
    if operation.dtype == "BF16" and columns % group == columns % 8 == group % 2 == 0 and ordinary(scales):
        pairs = packed.reshape(-1, group // 2)
        made = room("halves", pairs.size).view(np.uint32)
        loops.int4(pairs, scales.reshape(-1, 1), made.reshape(pairs.shape))
        return made.view(np.uint8)
    values = _values(packed.reshape(rows, -1), _INT4)[:, :columns]
    with np.errstate(invalid="ignore", over="ignore"):
        return narrowed(values * np.repeat(scales, group, axis=1)[:, :columns], operation.dtype)


def _values(pairs: Bytes, table: Floats) -> Floats:
    """[n, bytes] -> [n, values], the low half of each byte first."""
    return np.stack((table[pairs & 15], table[pairs >> 4]), axis=-1).reshape(len(pairs), -1)
