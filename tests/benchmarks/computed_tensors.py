"""Files made of one computed tensor each, for every operation that a checkpoint's dtype may ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.checkpoints.extents import Computed, Operand, Run, Span, TargetFile
from worker.checkpoints.operations import BlockFp8, BlockScales, Cast, Mxfp4, Operation, PackedInt4, ToBlockFp8
from worker.engine.arithmetic import compute

COLUMNS = 4096
_BAND = 128
"""Rows that the random numbers are made for; they repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedTensor:
    """A tensor of `COLUMNS` columns: operations that read the same operands, each with its result's bytes a band."""

    name: str
    operations: tuple[tuple[Operation, int, int], ...]
    """(operation, rows of its result in a band, bytes of each)."""
    operands: tuple[tuple["np.ndarray", int], ...]
    """(its numbers for a band, how often they are read for it)."""

    def write(self, folder: Path, output_bytes: int) -> TargetFile:
        """Its operands as files in `folder`; what is to be made of them, about `output_bytes`."""
        bands = max(1, output_bytes // sum(rows * row_bytes for _, rows, row_bytes in self.operations))
        paths = [folder / f"{self.name.replace(' ', '-')}-{number}" for number in range(len(self.operands))]
        for path, (numbers, _) in zip(paths, self.operands, strict=True):
            with path.open("wb") as file:
                for _ in range(bands):
                    file.write(numbers.tobytes())
        spans = tuple(self._spans(paths, bands))
        return TargetFile(path="tensor", spans=spans)

    def _spans(self, paths: list[Path], bands: int) -> Iterator[Span]:
        offset = 0
        for operation, rows, row_bytes in self.operations:
            operands = tuple(
                Operand((Run(path, 0, numbers.nbytes * bands),), *_reading(numbers.nbytes, rows, times))
                for path, (numbers, times) in zip(paths, self.operands, strict=True)
            )
            made = Computed(operation, operands, 0, rows * bands, row_bytes)
            yield Span(offset=offset, extents=(made,), label=type(operation).__name__)
            offset += made.length


def _reading(nbytes: int, rows: int, times: int) -> tuple[int, int]:
    """An operand's bytes a row, and the rows that share them."""
    times = min(times, rows)
    return nbytes // times, rows // times


def computed_tensors() -> tuple[ComputedTensor, ...]:
    """Dequantization, quantization and the casts between bfloat16 and fp32."""
    chance = np.random.default_rng(0)
    weights = chance.standard_normal(_BAND * COLUMNS, dtype=np.float32)
    halves = compute(Cast("F32", "BF16"), (weights.view(np.uint8),), 0, weights.size).copy()
    codes = realistic_codes(_BAND * COLUMNS)
    scales = chance.random(COLUMNS // 128, dtype=np.float32) * np.float32(1e-3)
    short_scales = (scales.view(np.uint32) >> 16).astype(np.uint16)
    pairs = chance.integers(0, 256, _BAND * COLUMNS // 2, dtype=np.uint8)
    exponents = chance.integers(110, 128, _BAND * COLUMNS // 32, dtype=np.uint8)
    group_scales = (chance.random(_BAND * COLUMNS // 32, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    two, four = 2 * COLUMNS, 4 * COLUMNS
    return (
        _tensor("fp8 to bf16", BlockFp8(COLUMNS, 128, 128, "F32", "BF16"), two, (codes, _BAND), (scales, 1)),
        _tensor(
            "fp8 of bf16 scales to bf16",
            BlockFp8(COLUMNS, 128, 128, "BF16", "BF16"),
            two,
            (codes, _BAND),
            (short_scales, 1),
        ),
        _tensor("mxfp4 to bf16", Mxfp4("BF16"), two, (pairs, _BAND), (exponents, _BAND)),
        _tensor("int4 to bf16", PackedInt4(COLUMNS, 32, "BF16", "BF16"), two, (pairs, _BAND), (group_scales, _BAND)),
        _tensor("bf16 to fp32", Cast("BF16", "F32"), four, (halves, _BAND)),
        _tensor("fp32 to bf16", Cast("F32", "BF16"), two, (weights, _BAND)),
        ComputedTensor(
            name="bf16 to fp8 and scales",
            operations=(
                (ToBlockFp8(COLUMNS, 128, 128, "BF16"), _BAND, COLUMNS),
                (BlockScales(COLUMNS, 128, 128, "BF16"), 1, COLUMNS // 32),
            ),
            operands=((halves, _BAND),),
        ),
    )


def _tensor(name: str, operation: Operation, row_bytes: int, *operands: tuple["np.ndarray", int]) -> ComputedTensor:
    return ComputedTensor(name=name, operations=((operation, _BAND, row_bytes),), operands=operands)


def realistic_codes(count: int) -> "np.ndarray":
    """e4m3 codes of normally distributed weights whose largest is 448, as quantizing makes them."""
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    codes = compute(ToBlockFp8(COLUMNS, 128, 128, "F32"), (values.view(np.uint8),), 0, count // COLUMNS)
    return np.asarray(codes).reshape(-1)
