"""Arithmetic against torch's own: dequantization, casts and quantization, bit for bit, however they are cut."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.checkpoints.extents import Computed, Extent, Literal, Operand, Permuted, Run, Span, Zeros
from worker.checkpoints.operations import BlockFp8, BlockScales, Cast, Mxfp4, Operation, PackedInt4, ToBlockFp8
from worker.engine.arithmetic import compute, narrowed
from worker.engine.block_fp8 import fp8_values
from worker.engine.computed import import_loops, merged, pieces
from worker.engine.gpu_arithmetic import Device
from worker.engine.parts import split
from worker.engine.reading import SourceFiles, read_extent
from worker.jobs.errors import BadInputError

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CHANCE = np.random.default_rng(7)


def literal(values: "np.ndarray") -> tuple[Extent, ...]:
    return (Literal(np.ascontiguousarray(values).view(np.uint8).tobytes()),)


def as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def fp8_weight(rows: int, columns: int, dtype: str, scale_dtype: str = "F32") -> tuple[Computed, torch.Tensor]:
    codes = CHANCE.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 3
    high, wide = -(-rows // 128), -(-columns // 128)
    scales = torch.from_numpy(CHANCE.random((high, wide), dtype=np.float32) * 1e-3).to(TORCH[scale_dtype])
    spread = scales.float().repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    expected = (torch.from_numpy(codes).view(torch.float8_e4m3fn).float() * spread).to(TORCH[dtype])
    operands = (
        Operand(literal(codes), columns),
        Operand(literal(scales.view(torch.uint8).numpy()), wide * scales.element_size(), 128),
    )
    operation = BlockFp8(columns, 128, 128, scale_dtype, dtype)
    return Computed(operation, operands, 0, rows, columns * expected.element_size()), expected


def test_every_fp8_code_is_torchs() -> None:
    codes = np.arange(256, dtype=np.uint8)

    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()

    assert np.array_equal(fp8_values(codes), expected, equal_nan=True)


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("shape", [(128, 128), (300, 256), (257, 200), (1, 7), (5, 1024)])
def test_fp8_blocks_become_what_torch_makes_of_them(shape: tuple[int, int], dtype: str, scale_dtype: str) -> None:
    made, expected = fp8_weight(*shape, dtype, scale_dtype)

    assert read_extent(made) == as_bytes(expected)


def every_fp8_code(scales: torch.Tensor, *, nans: bool) -> tuple[Computed, torch.Tensor]:
    """A block of all codes for each scale, [2, 128 x scales]."""
    codes = np.arange(256, dtype=np.uint8)
    if not nans:
        codes[(codes & 0x7F) == 0x7F] = 0
    rows = np.tile(codes.reshape(2, 128), (1, len(scales)))
    columns = rows.shape[1]
    values = torch.from_numpy(rows).view(torch.float8_e4m3fn).float() * scales.float().repeat_interleave(128)
    operands = (
        Operand(literal(rows), columns),
        Operand(literal(scales.view(torch.uint8).numpy()), len(scales) * scales.element_size(), 128),
    )
    dtype = next(name for name, known in TORCH.items() if known == scales.dtype)
    return Computed(BlockFp8(columns, 128, 128, dtype, "BF16"), operands, 0, 2, columns * 2), values.bfloat16()


def assert_alike(made: bytes, expected: torch.Tensor) -> None:
    """NaN where it is expected, the same bits elsewhere."""
    found = torch.frombuffer(bytearray(made), dtype=expected.dtype).reshape(expected.shape)
    assert torch.equal(found.isnan(), expected.isnan())
    assert as_bytes(found[~found.isnan()]) == as_bytes(expected[~expected.isnan()])


SCALES = {
    "ordinary": torch.from_numpy(CHANCE.random(500, dtype=np.float32) * 1e-3),
    "negative": -torch.from_numpy(CHANCE.random(50, dtype=np.float32)),
    "zero": torch.tensor([0.0, -0.0, 1e-3]),
    "powers of two": 2.0 ** torch.arange(-90, 7).float(),
    "of products halfway between two": torch.from_numpy(CHANCE.random(500, dtype=np.float32) * 1e-3).bfloat16().float(),
    "smallest ordinary": torch.tensor([2.0**-100, 1.1 * 2.0**-100]),
    "of subnormal products": torch.tensor([1e-45, 1e-40, 2.0**-126, 2.0**-120, 1.3 * 2.0**-117, 1.7 * 2.0**-110]),
    "largest ordinary": torch.tensor([127.99999, -127.99999]),
    "large": torch.tensor([128.0, 130.0, 1e30, -1e30, 2.0**119]),
    "large and negative": torch.tensor([-1e30, -130.0, 1e-3]),
    "infinite": torch.tensor([float("inf"), -float("inf")]),
    "no numbers": torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32),
}


@pytest.mark.parametrize("nans", [False, True])
@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("kind", SCALES)
def test_every_fp8_code_under_scales_of_any_size_is_exact(kind: str, scale_dtype: str, nans: bool) -> None:
    scales = SCALES[kind].to(TORCH[scale_dtype])

    made, expected = every_fp8_code(scales, nans=nans)

    assert_alike(read_extent(made), expected)


def test_scales_make_products_halfway_between_two() -> None:
    """Else the case above would not show that these go to even."""
    scales = SCALES["of products halfway between two"]

    products = torch.outer(torch.arange(8, 16).float(), scales).view(torch.int32)

    up, down = products & 0x1FFFF == 0x18000, products & 0x1FFFF == 0x08000
    assert up.any()
    assert down.any()


def test_a_product_that_bfloat16_cannot_hold_is_an_error() -> None:
    made, _ = every_fp8_code(torch.tensor([3e38 / 448 * 1.133]), nans=False)

    with pytest.raises(BadInputError, match="infinite there"):
        read_extent(made)


def test_an_fp8_nan_stays_one() -> None:
    codes = np.full((1, 128), 0xFF, np.uint8)
    operands = (Operand(literal(codes), 128), Operand(literal(np.ones(1, np.float32)), 4, 128))

    made = read_extent(Computed(BlockFp8(128, 128, 128, "F32", "F32"), operands, 0, 1, 512))

    assert np.isnan(np.frombuffer(made, np.float32)).all()


def test_mxfp4_is_what_transformers_makes_of_it() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = CHANCE.integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = CHANCE.integers(100, 140, (2, 6, 3), dtype=np.uint8)

    expected = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.bfloat16)

    for expert in range(2):
        operands = (Operand(literal(blocks[expert]), 48), Operand(literal(scales[expert]), 3))
        made = Computed(Mxfp4("BF16"), operands, 0, 6, 96 * 2)
        turned = Permuted((made,), (6, 96), (1, 0), 2)
        assert read_extent(turned) == as_bytes(expected[expert])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_mxfp4_products_are_exact_up_to_the_largest_finite(dtype: str) -> None:
    codes, exponents = np.full(16, 0x22, np.uint8), np.array([254], np.uint8)
    operands = (Operand(literal(codes), 16), Operand(literal(exponents), 1))

    made = Computed(Mxfp4(dtype), operands, 0, 1, 32 * TORCH[dtype].itemsize)

    assert read_extent(made) == as_bytes(torch.full((32,), 2.0**127, dtype=TORCH[dtype]))


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("exponents", [range(253), [0, 1, 24], [141, 127]], ids=str)
def test_every_mxfp4_byte_under_every_exponent_is_exact(exponents: list[int], dtype: str) -> None:
    groups = torch.arange(256, dtype=torch.uint8).reshape(16, 16).repeat(len(exponents), 1)
    powers = torch.tensor(exponents).repeat_interleave(16)
    values = E2M1[torch.stack((groups & 15, groups >> 4), dim=-1).long()].reshape(-1, 32)
    expected = (values.double() * 2.0 ** (powers.double() - 127)[:, None]).float().to(TORCH[dtype])
    operands = (
        Operand(literal(groups.numpy()), 16),
        Operand(literal(powers.to(torch.uint8).numpy()), 1),
    )

    made = Computed(Mxfp4(dtype), operands, 0, len(groups), 32 * expected.element_size())

    if expected.isinf().any():
        with pytest.raises(BadInputError, match="infinite there"):
            read_extent(made)
    else:
        assert read_extent(made) == as_bytes(expected)


def int4_weight(rows: int, columns: int, dtype: str) -> tuple[Computed, torch.Tensor]:
    codes = torch.from_numpy(CHANCE.integers(-8, 8, (rows, columns), dtype=np.int32))
    padded = torch.nn.functional.pad(codes + 8, (0, -columns % 8)).reshape(rows, -1, 8).long()
    words = sum(padded[..., place] << (4 * place) for place in range(8))
    packed = torch.as_tensor(words).to(torch.uint32).view(torch.int32)
    scales = torch.from_numpy(CHANCE.random((rows, -(-columns // 32)), dtype=np.float32)).bfloat16()
    expected = (codes.float() * scales.float().repeat_interleave(32, 1)[:, :columns]).to(TORCH[dtype])
    operands = (
        Operand(literal(packed.numpy()), packed.shape[1] * 4),
        Operand(literal(scales.view(torch.uint8).numpy()), scales.shape[1] * 2),
    )
    operation = PackedInt4(columns, 32, "BF16", dtype)
    return Computed(operation, operands, 0, rows, columns * expected.element_size()), expected


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("shape", [(4, 64), (3, 40), (7, 13), (300, 2048)])
def test_packed_int4_becomes_its_products(shape: tuple[int, int], dtype: str) -> None:
    made, expected = int4_weight(*shape, dtype)

    assert read_extent(made) == as_bytes(expected)


def every_kind(dtype: str) -> torch.Tensor:
    """Ordinary values, ties in every direction, the smallest and the largest, infinities and NaN."""
    bits = CHANCE.integers(0, 2**32, 4096, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F80C000, 0x33000000, 0x33800001, 0x38FFE000], np.uint32)
    values = torch.from_numpy(np.concatenate([bits, ties]).view(np.float32).copy())
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1.0, 65504.0, 6e-8])
    values = torch.cat([values, special])
    return values[~values.abs().gt(65000) | values.isinf()].to(TORCH[dtype])


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("source", TORCH)
def test_a_cast_rounds_as_torch_does(source: str, dtype: str) -> None:
    values = every_kind(source)
    operand = Operand(literal(values.view(torch.uint8).numpy()), values.element_size())
    expected = values.float().to(TORCH[dtype])

    made = read_extent(Computed(Cast(source, dtype), (operand,), 0, len(values), expected.element_size()))

    found = torch.frombuffer(bytearray(made), dtype=TORCH[dtype])
    assert torch.equal(found.isnan(), expected.isnan())
    assert as_bytes(found[~found.isnan()]) == as_bytes(expected[~expected.isnan()])


@pytest.mark.parametrize(("value", "dtype"), [(70000.0, "F16"), (3.4e38, "BF16")])
def test_a_value_that_a_dtype_cannot_hold_is_an_error(value: float, dtype: str) -> None:
    operand = Operand(literal(np.array([1, value], np.float32)), 4)
    made = Computed(Cast("F32", dtype), (operand,), 0, 2, 2)

    with pytest.raises(BadInputError, match="infinite there"):
        read_extent(made)


def to_fp8(values: torch.Tensor, source: str) -> tuple[Computed, Computed]:
    rows, columns = values.shape
    row_bytes = columns * values.element_size()
    stored = literal(values.view(torch.uint8).numpy())
    high, wide = -(-rows // 128), -(-columns // 128)
    codes = Computed(ToBlockFp8(columns, 128, 128, source), (Operand(stored, row_bytes),), 0, rows, columns)
    scales = Computed(BlockScales(columns, 128, 128, source), (Operand(stored, row_bytes * 128),), 0, high, wide * 4)
    return codes, scales


@pytest.mark.parametrize("source", TORCH)
@pytest.mark.parametrize("shape", [(128, 256), (300, 200), (1, 5), (129, 129)])
def test_quantizing_is_torchs_rounding_of_the_scaled_block(shape: tuple[int, int], source: str) -> None:
    values = torch.from_numpy(CHANCE.standard_normal(shape, dtype=np.float32)).to(TORCH[source])
    values[0, 0] = 0.0
    codes, scales = to_fp8(values, source)
    rows, columns = shape
    padded = torch.nn.functional.pad(values.float().abs(), (0, -columns % 128, 0, -rows % 128))
    largest = padded.reshape(-(-rows // 128), 128, -1, 128).amax(dim=(1, 3))
    expected = largest / torch.full_like(largest, 448.0)
    spread = expected.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]

    assert read_extent(scales) == as_bytes(expected)
    assert read_extent(codes) == as_bytes((values.float() / spread).to(torch.float8_e4m3fn))


@pytest.mark.parametrize("largest", [448.0, 1.0, 3e38, 2.0**-126, 1e-40, 5e-43, 1e-45])
def test_every_magnitude_is_quantized_to_the_nearest_code(largest: float) -> None:
    """Halfway between two codes, just beside, below the least code, and under scales that fp32 rounds by much."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halfway = (codes[1:] + codes[:-1]) / 2
    tiny = torch.tensor([2.0**-10, 2.0**-11, 1e-9, 0.0])
    ones = torch.cat([codes, halfway, halfway * (1 + 2.0**-23), halfway * (1 - 2.0**-24), tiny])
    values = torch.cat([ones, -ones]) * torch.tensor(largest / 448)
    values = torch.nn.functional.pad(values, (0, -len(values) % 128)).reshape(-1, 128)
    values[:, 0] = largest
    made, scales = to_fp8(values.repeat_interleave(128, 0), "F32")
    expected = values.abs().amax(dim=1) / torch.full((len(values),), 448.0)
    expected[expected == 0] = 1
    quotients = (values / expected[:, None]).clamp(-448, 448)

    assert read_extent(scales) == as_bytes(expected)
    assert read_extent(made) == as_bytes(quotients.repeat_interleave(128, 0).to(torch.float8_e4m3fn))


def test_no_more_is_read_at_once_than_is_made(tmp_path: Path) -> None:
    file = tmp_path / "weight"
    file.write_bytes(bytes(4096 * 256 * 2))
    operand = Operand((Run(file, 0, file.stat().st_size),), 256 * 2 * 128)
    scales = Computed(BlockScales(256, 128, 128, "BF16"), (operand,), 0, 32, 8)
    read: list[int] = []

    def reading(_extent: Extent, _start: int, length: int, _number: int) -> np.ndarray:
        read.append(length)
        return np.zeros(length, np.uint8)

    made = b"".join(piece.tobytes() for piece in pieces(scales, reading, compute, 2**17))

    assert len(made) == scales.length
    assert max(read) <= 2**17


def test_a_block_of_zeros_is_quantized_to_zeros() -> None:
    codes, scales = to_fp8(torch.zeros(4, 4), "F32")

    assert read_extent(codes) == bytes(16)
    assert read_extent(scales) == as_bytes(torch.ones(1))


def test_a_weight_with_an_infinity_is_not_quantized() -> None:
    codes, _ = to_fp8(torch.full((2, 2), float("inf")), "F32")

    with pytest.raises(BadInputError, match="infinite or no number"):
        read_extent(codes)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("cannot cache function: no locator available"), EOFError("Ran out of input"), OSError(28, "full")],
    ids=["no place", "a spoilt file", "a full disk"],
)
def test_loops_are_compiled_where_they_cannot_be_kept(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    njit = numba.njit

    def refuses(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise error
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", refuses)
    spec = importlib.util.find_spec("worker.engine.loops")
    assert spec is not None
    assert spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    made = np.empty((1, 4), np.uint16)
    anew.to_halves(np.full((1, 4), 0x38, np.int8), np.full((1, 1), 2, np.float32), 0, (128, 128), made)

    assert made.tolist() == [[0x4000] * 4]


def test_threads_that_round_at_the_same_time_do_not_disturb_each_other() -> None:
    values = [np.full(2**18, 1.0 + number, np.float32) for number in range(4)]

    def wrong(number: int) -> int:
        rounded = narrowed(values[number], "BF16").view(np.uint16)
        return int((rounded != values[number].view(np.uint32)[0] >> 16).sum())

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, list(range(4)) * 50)) == 0


@pytest.mark.parametrize("wrapped", ["plain", "permuted", "operand"])
def test_loops_are_imported_before_processes_are_forked(monkeypatch: pytest.MonkeyPatch, wrapped: str) -> None:
    made = fp8_weight(128, 128, "BF16")[0]
    extents: dict[str, Extent] = {
        "plain": made,
        "permuted": Permuted((made,), (128, 128), (1, 0), 2),
        "operand": Computed(Cast("BF16", "F32"), (Operand((made,), 256),), 0, 128, 512),
    }
    monkeypatch.delitem(sys.modules, "worker.engine.loops")
    monkeypatch.delattr("worker.engine.loops")

    import_loops([Zeros(1)])
    assert "worker.engine.loops" not in sys.modules
    import_loops([extents[wrapped]])
    assert "worker.engine.loops" in sys.modules


def examples() -> Iterator[Computed]:
    yield fp8_weight(300, 256, "BF16")[0]
    yield fp8_weight(200, 8320, "BF16")[0]
    yield fp8_weight(300, 384, "BF16", "BF16")[0]
    yield fp8_weight(257, 200, "F32", "BF16")[0]
    yield int4_weight(70, 40, "BF16")[0]
    yield from to_fp8(torch.from_numpy(CHANCE.standard_normal((400, 96), dtype=np.float32)), "F32")
    yield from to_fp8(torch.from_numpy(CHANCE.standard_normal((300, 8320), dtype=np.float32)).bfloat16(), "BF16")
    numbers = literal(CHANCE.standard_normal((90, 3), dtype=np.float32))
    yield Computed(Cast("F32", "BF16"), (Operand(numbers, 12),), 0, 90, 6)


EXAMPLES = tuple(examples())


@given(st.sampled_from(EXAMPLES), st.integers(1, 60_000), st.integers(1, 70_000))
def test_where_it_is_cut_and_how_much_is_made_at_once_changes_nothing(
    made: Computed, segment_bytes: int, piece_bytes: int
) -> None:
    pieces = [extent for span in split(Span(offset=0, extents=(made,)), segment_bytes) for extent in span.extents]
    files = SourceFiles(piece_bytes=piece_bytes)

    assert b"".join(files.whole(piece).tobytes() for piece in pieces) == read_extent(made)


@pytest.mark.parametrize("made", EXAMPLES, ids=lambda made: type(made.operation).__name__)
def test_torch_computes_the_same_bits(made: Computed) -> None:
    """The code that runs on a GPU, on the CPU; on a GPU: tests/benchmarks/dequantize."""
    assert SourceFiles(lambda: Device("cpu").compute).whole(made).tobytes() == read_extent(made)


@pytest.mark.parametrize("operation", [Cast("BF16", "F32"), Cast("F16", "BF16"), Cast("F32", "F16"), Mxfp4("BF16")])
def test_torch_computes_other_operations_the_same(operation: Operation) -> None:
    codes = CHANCE.integers(0, 120, 64 * 16, dtype=np.uint8)
    data = CHANCE.standard_normal(256, dtype=np.float32).view(np.uint8) if operation == Cast("F32", "F16") else codes
    scales = CHANCE.integers(110, 130, 64, dtype=np.uint8)
    operands = (data, scales) if isinstance(operation, Mxfp4) else (data,)

    ours = compute(operation, operands, 0, 64)

    assert Device("cpu").compute(operation, operands, 0, 64).tobytes() == ours.tobytes()


@given(st.permutations(range(2)), st.permutations(range(3)), st.integers(2, 5), st.integers(2, 4), st.integers(2, 3))
def test_two_permutations_as_one(inner: list[int], outer: list[int], a: int, b: int, c: int) -> None:
    stored = np.arange(a * b * c, dtype=np.uint16)
    shape = (a, b * c)
    turned = tuple(shape[axis] for axis in inner)
    finer = next(s for s in ((a, b, c), (b, c, a)) if s[0] in (turned[0], b) and _refines(s, turned))
    twice = Permuted((Permuted(literal(stored), shape, tuple(inner), 2),), finer, tuple(outer), 2)

    once = merged(twice)

    assert not isinstance(once.extents[0], Permuted)
    assert read_extent(once) == read_extent(twice)


def _refines(finer: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return (finer[0], finer[1] * finer[2]) == shape or (finer[0] * finer[1], finer[2]) == shape


def test_nothing_is_left_open(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345678")
    files = SourceFiles()

    descriptor = files.open(file)
    files.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
