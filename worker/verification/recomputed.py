"""What adapters make of a base's tensor, worked out anew in fp64: bounds that a rounded result lies between."""
# torch is typed in part:
# pyright: basic

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .tensors import DTYPES

_ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
"""The most by which a value is off after it was rounded, as a part of it."""
_SMALLEST = {"F32": 2.0**-150, "F16": 2.0**-25, "BF16": 2.0**-134}
"""The same below the dtype's normal numbers, as it is."""
_FP32 = _ROUNDING["F32"]
_ELEMENTS = 2**21
"""Of a band of rows that is worked out at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """scale * left [rows, rank] @ right [rank, columns]; with a magnitude DoRA's, of columns or of rows."""

    scale: float
    left: torch.Tensor
    right: torch.Tensor
    magnitude: torch.Tensor | None = None
    by_column: bool = False
    dtype: str = "F32"
    """What PEFT's own steps round it to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A base in `source`, to which products are added one after the other, written in `written`."""

    products: Sequence[Product]
    source: str
    written: str
    stepwise: bool
    """Rounded after each step, as PEFT does; else once."""


@dataclass(slots=True)
class _Value:
    """Numbers, and by how much arithmetic in fp32 may be off."""

    value: torch.Tensor
    error: torch.Tensor

    def rounded(self, dtype: str, times: int = 1) -> None:
        self.error += times * (_ROUNDING[dtype] * self.value.abs() + _SMALLEST[dtype])


def bounds(base: torch.Tensor, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest that may have been written, in the dtype of the output.

    A sum of n products in fp32 is off by at most n + 1 roundings of the sum of their magnitudes, in whatever order
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); each further step rounds once more.
    """
    matrix = base.reshape(base.shape[0], -1)
    by_column = any(one.by_column and one.magnitude is not None for one in update.products)
    each = matrix.shape[0] if by_column else max(1, _ELEMENTS // matrix.shape[1])
    low, high = (torch.empty(matrix.shape, dtype=DTYPES[update.written]) for _ in range(2))
    for rows in _bands(matrix.shape[0], each):
        total = _updated(matrix[rows].double(), update, rows)
        total.error += 4 * _FP32 * total.value.abs()  # of torch's own way from fp64 to what is written, by fp32
        low[rows] = (total.value - total.error).to(low.dtype)
        high[rows] = (total.value + total.error).to(high.dtype)
    return low.reshape(base.shape), high.reshape(base.shape)


def _bands(height: int, each: int) -> Iterator[slice]:
    for start in range(0, height, each):
        yield slice(start, min(start + each, height))


def _updated(base: torch.Tensor, update: Update, rows: slice) -> _Value:
    total = _Value(base.clone(), torch.zeros_like(base))
    for one in update.products:
        product = _product(one, rows, stepwise=update.stepwise)
        alone = _Value(base + product.value, product.error.clone())
        alone.rounded("F32")
        total.value += product.value
        total.error += product.error
        total.rounded("F32")
        if one.magnitude is not None:
            _scale(total, alone, one, rows, update)
        if update.stepwise:
            total.rounded(update.source)
    return total


def _product(one: Product, rows: slice, *, stepwise: bool) -> _Value:
    left, right = one.left[rows].double(), one.right.double()
    made = _Value(one.scale * (left @ right), abs(one.scale) * (left.abs() @ right.abs()))
    made.error *= (left.shape[1] + 3) * _FP32
    made.rounded("F32", 2)
    if stepwise:
        made.rounded(one.dtype, 2)
    return made


def _scale(total: _Value, alone: _Value, one: Product, rows: slice, update: Update) -> None:
    """Rows, or columns, to their magnitude: the norm is that of the base with this product alone."""
    assert one.magnitude is not None
    axis = 0 if one.by_column else 1
    wide = "F32" if not update.stepwise or update.source != one.dtype else update.source
    if update.stepwise:
        alone.rounded(wide, 2)
    norms = alone.value.norm(dim=axis, keepdim=True)
    off = alone.error.norm(dim=axis, keepdim=True) / norms + 4 * _FP32
    magnitude = one.magnitude.double()
    factor = (magnitude[None, :] if one.by_column else magnitude[rows][:, None]) / norms
    if update.stepwise:
        total.rounded(wide)
        off += 4 * _ROUNDING[wide]
    total.value *= factor
    total.error *= factor.abs()
    total.error += off * total.value.abs()
    total.rounded(wide if update.stepwise else "F32", 2)
