"""Arithmetic that makes rows of one tensor from rows of others, as data: dequantization, quantization, casts.

Every operation works in fp32 and rounds once. How it is done is the engine's business.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Cast:
    """One operand, `source` -> `dtype`, element by element; times `factor` before it is rounded."""

    source: str
    dtype: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class BlockFp8:
    """(e4m3 weight, a scale a block) -> weight * scale: DeepSeek-V3's `weight_scale_inv`, fp32 or bf16."""

    columns: int
    block_rows: int
    block_columns: int
    scale_dtype: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """(two e2m1 codes a byte, low half first; an exponent of bias 127 for each 32) -> their products. OCP MX."""

    dtype: str


@dataclass(frozen=True, slots=True)
class PackedInt4:
    """(eight codes an int32, low bits first, offset by 8; a scale for each group) -> their products.

    compressed-tensors' `pack-quantized`: Kimi-K2.
    """

    columns: int
    group_columns: int
    scale_dtype: str
    dtype: str


@dataclass(frozen=True, slots=True)
class ToBlockFp8:
    """A weight -> its e4m3 codes, under `BlockScales` of the same blocks."""

    columns: int
    block_rows: int
    block_columns: int
    source: str


@dataclass(frozen=True, slots=True)
class BlockScales:
    """A weight -> fp32 scale a block: the block's largest magnitude over e4m3's, 448; 1 where all is zero.

    One row of scales is made of `block_rows` rows of the weight.
    """

    columns: int
    block_rows: int
    block_columns: int
    source: str


@dataclass(frozen=True, slots=True)
class Factors:
    """scale * B @ A: two operands read whole, A [rank, in] and B [out, rank]; with a magnitude three."""

    scale: float
    rank: int
    a_dtype: str
    b_dtype: str
    turned: bool = False
    """What they are added to is [in, out]."""
    magnitude: str | None = None
    """DoRA's dtype: a factor for each output, [out]."""
    twice: bool = False
    """Step by step, the product is rounded once more before it is scaled: PEFT's way with experts."""


Method = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
MajoritySign = Literal["total", "frequency"]


@dataclass(frozen=True, slots=True)
class Combination:
    """One pair of factors made of several, as PEFT's `add_weighted_adapter` does."""

    method: Method
    density: float = 1.0
    majority_sign_method: MajoritySign = "total"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    """Of all values of both factors that svd leaves, the quantile that none exceeds."""
    seed: tuple[int, ...] = ()
    """What is dropped at random follows from it alone."""


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """(base, then the operands of each pair of factors) -> base + their products, rounded once.

    DoRA: rows of base + product, each scaled to its magnitude; its norm is that of the base before any adapter.
    """

    rows: int
    columns: int
    """Of the matrix that the factors are added to, whichever rows of it are made."""
    source: str
    dtype: str
    factors: tuple[Factors, ...]
    stepwise: bool = False
    """Round as PEFT does: each product to its factors' dtype, then each sum."""
    combination: Combination | None = None


@dataclass(frozen=True, slots=True)
class RowNorms:
    """A weight -> the Euclidean norm of each of its rows: DoRA's magnitudes before any training."""

    columns: int
    source: str
    dtype: str


Law = Literal["constant", "normal", "uniform", "log_of_uniform", "softplus_inverse_of_log_uniform"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """No operand -> values that follow from `seed` and their place alone: a fresh model's weights.

    `low` and `high`: a constant's value and nothing; mean and deviation; or the ends of an interval.
    """

    columns: int
    """Elements of a row."""
    dtype: str
    seed: tuple[int, ...]
    """Up to 64 bits each, at most two."""
    law: Law
    low: float
    high: float = 0.0


Operation = Drawn | RowNorms | Cast | BlockFp8 | Mxfp4 | PackedInt4 | ToBlockFp8 | BlockScales | LowRankUpdate

PRODUCT_ROWS = 64
"""Rows of a product are always made in the same blocks: a matrix product's last bit may depend on its shape."""


def band_rows(operation: Operation) -> int:
    """Rows of the result that must be made together."""
    match operation:
        case ToBlockFp8(block_rows=block_rows):
            return block_rows
        case LowRankUpdate(rows=rows, factors=factors):
            by_column = any(pair.turned and pair.magnitude is not None for pair in factors)
            return rows if by_column else 1
        case _:
            return 1


def piece_rows(operation: Operation) -> int:
    """Rows that are best made together."""
    match operation:
        case LowRankUpdate():
            return max(band_rows(operation), PRODUCT_ROWS)
        case Drawn(columns=columns):
            return drawn_rows(columns)
        case _:
            return band_rows(operation)


def drawn_rows(columns: int) -> int:
    """Rows that are drawn together, from one state of the generator."""
    return max(1, _DRAWN_AT_ONCE // max(columns, 1))


_DRAWN_AT_ONCE = 2**16
"""Elements: few enough for a core's cache, enough that a generator's start does not count."""
