"""Arithmetic that makes rows of one tensor from rows of others, as data: dequantization, quantization, casts.

Every operation works in fp32 and rounds once. How it is done is the engine's business.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cast:
    """One operand, `source` -> `dtype`, element by element."""

    source: str
    dtype: str


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


Operation = Cast | BlockFp8 | Mxfp4 | PackedInt4 | ToBlockFp8 | BlockScales


def band_rows(operation: Operation) -> int:
    """Rows of the result that must be made together."""
    return operation.block_rows if isinstance(operation, ToBlockFp8) else 1
