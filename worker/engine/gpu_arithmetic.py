"""The same operations on the GPU that CUDA shows to this process, bit for bit as numpy's.

Products of LoRA's factors are the exception: they may differ in fp32's last bit, before the one rounding.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.operations import (
    BlockFp8,
    BlockScales,
    Cast,
    Drawn,
    Factors,
    LowRankUpdate,
    Mxfp4,
    Operation,
    PackedInt4,
    RowNorms,
    ToBlockFp8,
)
from .arithmetic import FP8_MAX, Bytes, compute, not_finite, too_large

if TYPE_CHECKING:
    from .arithmetic import Arithmetic

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


@cache
def on_gpu() -> "Arithmetic":
    """Operations on CUDA's first device."""
    return Device("cuda").compute


class Device:
    """Operands travel there, results back; on "cpu", for tests, nowhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pinned: dict[int, torch.Tensor] = {}

    def compute(self, operation: Operation, operands: tuple[Bytes, ...], first: int, rows: int) -> Bytes:
        """As numpy's `compute`."""
        if isinstance(operation, Drawn | RowNorms):  # other generators would draw other values; norms are few
            return compute(operation, operands, first, rows)
        result = _computed(operation, tuple(map(self._there, operands)), first, rows)
        return self._back(result.contiguous().view(torch.uint8).reshape(-1))

    def _there(self, data: Bytes) -> torch.Tensor:
        return torch.from_numpy(data if data.flags.writeable else data.copy()).to(self.name)  # pyright: ignore[reportUnknownMemberType]  # torch types no arrays

    def _back(self, result: torch.Tensor) -> Bytes:
        """Through page-locked memory, which is the fast way; reused, since the caller is done with the last result."""
        if self.name == "cpu":
            return result.numpy()
        size = result.numel()
        room = self.pinned.get(0)
        if room is None or room.numel() < size:
            room = self.pinned[0] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        room[:size].copy_(result)
        return room[:size].numpy()


def _computed(operation: Operation, operands: tuple[torch.Tensor, ...], first: int, rows: int) -> torch.Tensor:
    match operation:
        case Cast(source, dtype, factor):
            values = _floats(operands[0], source)
            return _narrowed(values if factor == 1 else values * factor, dtype)
        case BlockFp8():
            codes = operands[0].view(torch.float8_e4m3fn).reshape(rows, operation.columns).float()
            scales = _floats(operands[1], operation.scale_dtype)
            return _narrowed(codes.mul_(_spread(scales, operation, first, rows)), operation.dtype)
        case Mxfp4(dtype):
            return _mxfp4(operands[0], operands[1], dtype)
        case PackedInt4():
            return _packed_int4(operation, operands[0], operands[1], rows)
        case ToBlockFp8():
            values = _floats(operands[0], operation.source).reshape(rows, operation.columns)
            return (values / _spread(_scales_of(values, operation), operation, 0, rows)).to(torch.float8_e4m3fn)
        case BlockScales():
            return _scales_of(_floats(operands[0], operation.source).reshape(-1, operation.columns), operation)
        case LowRankUpdate():
            return _low_rank(operation, operands, first, rows)
        case Drawn() | RowNorms():
            raise AssertionError("numpy's, on whichever device")


def _floats(data: torch.Tensor, dtype: str) -> torch.Tensor:
    return data.view(_DTYPES[dtype]).float()


def _narrowed(values: torch.Tensor, dtype: str) -> torch.Tensor:
    rounded = values.to(_DTYPES[dtype])
    if dtype != "F32" and bool((rounded.isinf() & values.isfinite()).any()):
        raise too_large(float(values[values.isfinite()].abs().max()), dtype)
    return rounded


def _spread(scales: torch.Tensor, operation: BlockFp8 | ToBlockFp8, first: int, rows: int) -> torch.Tensor:
    scales = scales.reshape(-1, -(-operation.columns // operation.block_columns))
    offset = first % operation.block_rows
    tall = scales.repeat_interleave(operation.block_rows, 0)[offset : offset + rows]
    return tall.repeat_interleave(operation.block_columns, 1)[:, : operation.columns]


def _scales_of(values: torch.Tensor, operation: ToBlockFp8 | BlockScales) -> torch.Tensor:
    if not bool(values.isfinite().all()):
        raise not_finite()
    rows, columns = values.shape
    height, width = operation.block_rows, operation.block_columns
    padded: Any = torch.nn.functional.pad(values.abs(), (0, -columns % width, 0, -rows % height))
    largest = padded.reshape(-(-rows // height), height, -1, width).amax(dim=(1, 3))
    # A tensor's division by a number is a product with its rounded reciprocal; by a tensor, it is a division.
    scales = largest / torch.full_like(largest, FP8_MAX)
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _mxfp4(codes: torch.Tensor, exponents: torch.Tensor, dtype: str) -> torch.Tensor:
    table = torch.tensor(_E2M1, device=codes.device)
    pairs = codes.reshape(-1, 16)
    values = torch.stack((table[(pairs & 15).int()], table[(pairs >> 4).int()]), dim=-1).reshape(-1, 32)
    powers = torch.where(exponents == 0, 2.0**-127, (exponents.int() << 23).view(torch.float32))
    return _narrowed(values * powers[:, None], dtype)


def _packed_int4(operation: PackedInt4, packed: torch.Tensor, scale: torch.Tensor, rows: int) -> torch.Tensor:
    words = packed.view(torch.int32).reshape(rows, -1)
    places = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)
    codes = ((words[..., None] >> places) & 15).float().reshape(rows, -1)[:, : operation.columns] - 8
    scales = _floats(scale, operation.scale_dtype).reshape(rows, -1)
    spread = scales.repeat_interleave(operation.group_columns, 1)[:, : operation.columns]
    return _narrowed(codes * spread, operation.dtype)


def _low_rank(operation: LowRankUpdate, operands: tuple[torch.Tensor, ...], first: int, rows: int) -> torch.Tensor:
    """As worker/engine/low_rank.py, whose `prepared` made the operands."""
    base = _floats(operands[0], operation.source).reshape(rows, operation.columns)
    rest = iter(operands[1:])
    total = base
    for factors in operation.factors:
        left = next(rest).view(torch.float32).reshape(operation.rows, factors.rank)[first : first + rows]
        product = left @ next(rest).view(torch.float32).reshape(factors.rank, -1)
        if operation.stepwise and factors.twice:
            product = _rounded(product, factors.b_dtype)
        product = product.mul_(factors.scale)
        magnitude = next(rest).view(torch.float32) if factors.magnitude else None
        if operation.stepwise:
            total = _step(total, base, product, factors, magnitude, operation.source, first)
        elif magnitude is None:
            total = product.add_(total)
        else:
            factor = _dora(_norms(base + product, factors), magnitude, factors, first)
            total = product.add_(total).mul_(factor)
    return _narrowed(total, operation.dtype)


def _norms(values: torch.Tensor, factors: Factors) -> torch.Tensor:
    return values.double().square().sum(dim=0 if factors.turned else 1).sqrt().float()


def _dora(norms: torch.Tensor, magnitude: torch.Tensor, factors: Factors, first: int) -> torch.Tensor:
    if factors.turned:
        return (magnitude / norms)[None, :]
    return (magnitude[first : first + len(norms)] / norms)[:, None]


def _step(
    total: torch.Tensor,
    base: torch.Tensor,
    product: torch.Tensor,
    factors: Factors,
    magnitude: torch.Tensor | None,
    dtype: str,
    first: int,
) -> torch.Tensor:
    product = _rounded(product, factors.b_dtype)
    if magnitude is None:
        return _rounded(total + product, dtype)
    wide = dtype if dtype == factors.b_dtype else "F32"
    norms = _rounded(_norms(_rounded(base + product, wide), factors), wide)
    factor = _rounded(_dora(norms, magnitude, factors, first), wide)
    return _rounded(_rounded(factor * _rounded(total + product, wide), wide), dtype)


def _rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    return values.to(_DTYPES[dtype]).float()
