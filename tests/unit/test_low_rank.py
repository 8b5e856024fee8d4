"""Low-rank updates: the same bits however a tensor is cut, numpy's and torch's alike; combinations as PEFT's code."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.utils import merge_utils

from worker.checkpoints.extents import Computed, Extent, Literal, Operand, Permuted, Span
from worker.checkpoints.operations import Cast, Combination, Factors, LowRankUpdate
from worker.engine.combination import combined
from worker.engine.computed import gains_on_gpu, shared_operand
from worker.engine.gpu_arithmetic import Device
from worker.engine.low_rank import delta_norm
from worker.engine.parts import split
from worker.engine.reading import SourceFiles, read_extent

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CHANCE = np.random.default_rng(11)


def literal(tensor: torch.Tensor) -> tuple[Extent, ...]:
    return (Literal(tensor.contiguous().view(torch.uint8).numpy().tobytes()),)


def random(*shape: int, dtype: str = "F32") -> torch.Tensor:
    return torch.from_numpy(CHANCE.standard_normal(shape, dtype=np.float32)).to(TORCH[dtype])


def update(
    rows: int,
    columns: int,
    *ranks: int,
    dtype: str = "BF16",
    dora: bool = False,
    turned: bool = False,
    **fields: object,
) -> Computed:
    """A base and factors of these ranks, in one dtype."""
    base = random(rows, columns, dtype=dtype)
    item_bytes = base.element_size()
    operands = [Operand(literal(base), columns * item_bytes)]
    factors: list[Factors] = []
    out, inner = (columns, rows) if turned else (rows, columns)
    for rank in ranks:
        parts = [random(rank, inner, dtype=dtype), random(out, rank, dtype=dtype), random(out, dtype=dtype).abs()]
        operands += [Operand(literal(part), part.nbytes, 0) for part in parts[: 3 if dora else 2]]
        factors.append(Factors(0.3 * rank, rank, dtype, dtype, turned, dtype if dora else None))
    operation = LowRankUpdate(rows, columns, dtype, dtype, tuple(factors), **fields)  # pyright: ignore[reportArgumentType]  # few fields
    return Computed(operation, tuple(operands), 0, rows, columns * item_bytes)


def examples() -> Iterator[Computed]:
    yield update(200, 96, 4)
    yield update(131, 200, 16, 3, dtype="F32")
    yield update(70, 300, 8, dtype="F16", dora=True)
    yield update(150, 40, 4, 4, dora=True, turned=True)
    yield update(300, 33, 5, turned=True, stepwise=True)
    yield update(90, 64, 4, 4, combination=Combination("ties", 0.5))
    yield update(90, 64, 4, 4, turned=True, combination=Combination("dare_linear", 0.5, seed=(3,)))
    yield update(90, 64, 4, 6, combination=Combination("svd", svd_rank=3))


EXAMPLES = tuple(examples())


def test_matrices_that_are_multiplied_gain_on_a_gpu_and_nothing_else_does() -> None:
    made = update(4, 8, 2)
    cast_after = Computed(Cast("BF16", "F32"), (Operand((made,), 16),), 0, 4, 32)
    cast_alone = Computed(Cast("BF16", "F32"), (Operand(literal(random(4, 8, dtype="BF16")), 16),), 0, 4, 32)

    for extent in (made, cast_after, Permuted((made,), (4, 8), (1, 0), 2)):
        assert gains_on_gpu([cast_alone, extent])
    assert not gains_on_gpu([cast_alone, *literal(random(4, 8, dtype="BF16"))])


@given(st.sampled_from(EXAMPLES), st.integers(1, 60_000), st.integers(1, 70_000))
def test_where_it_is_cut_and_how_much_is_made_at_once_changes_nothing(
    made: Computed, segment_bytes: int, piece_bytes: int
) -> None:
    pieces = [extent for span in split(Span(offset=0, extents=(made,)), segment_bytes) for extent in span.extents]
    files = SourceFiles(piece_bytes=piece_bytes)

    assert b"".join(files.whole(piece).tobytes() for piece in pieces) == read_extent(made)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_stretch_is_that_of_the_whole(made: Computed, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, made.length - 1))
    length = data.draw(st.integers(1, made.length - start))

    assert SourceFiles().stretch(made, start, length).tobytes() == read_extent(made)[start : start + length]


@pytest.mark.parametrize("made", EXAMPLES, ids=str)
def test_torch_computes_the_same_up_to_the_products_last_bit(made: Computed) -> None:
    """The code that runs on a GPU, on the CPU."""
    assert isinstance(made.operation, LowRankUpdate)
    dtype = TORCH[made.operation.dtype]

    theirs = torch.frombuffer(bytearray(SourceFiles(lambda: Device("cpu").compute).whole(made).tobytes()), dtype=dtype)
    ours = torch.frombuffer(bytearray(read_extent(made)), dtype=dtype)

    step = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=2 * step, atol=1e-5)
    assert int((ours != theirs).sum()) <= (0.02 if dtype != torch.float32 else 1.0) * len(ours)


@pytest.mark.parametrize("dtype", TORCH)
def test_an_update_is_the_exact_sum_rounded_once(dtype: str) -> None:
    made = update(128, 256, 16, dtype=dtype)
    base, a, b = (
        torch.frombuffer(bytearray(read_extent(operand.extents[0])), dtype=TORCH[dtype]).double()
        for operand in made.operands
    )

    exact = base.reshape(128, 256) + 0.3 * 16 * (b.reshape(128, 16) @ a.reshape(16, 256))

    found = torch.frombuffer(bytearray(read_extent(made)), dtype=TORCH[dtype]).reshape(128, 256)
    wrong = (found != exact.to(TORCH[dtype])).sum()
    # What lies within fp32's own error of a midpoint may fall on its other side.
    assert wrong <= {"BF16": 10, "F16": 150, "F32": exact.numel()}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(TORCH[dtype]).eps, atol=1e-4)


def test_a_norm_is_that_of_the_product() -> None:
    made = update(100, 80, 4, 7, dtype="F32")
    assert isinstance(made.operation, LowRankUpdate)
    shared = tuple(
        shared_operand(operand, number, SourceFiles().anew) for number, operand in enumerate(made.operands[1:])
    )

    added = np.frombuffer(read_extent(made), np.float32) - np.frombuffer(
        read_extent(made.operands[0].extents[0]), np.float32
    )

    assert delta_norm(made.operation, shared) == pytest.approx(
        float(np.linalg.norm(added.astype(np.float64))), rel=1e-5
    )


def test_an_operand_may_be_a_stretch_of_what_is_permuted() -> None:
    """The factors of one expert: every second column of B."""
    b = random(6, 8)
    apart = Permuted(literal(b), (6, 4, 2), (2, 0, 1), 4)
    for expert in range(2):
        operand = Operand((apart,), 6 * 4 * 4, 0, expert * 6 * 4 * 4)
        found = shared_operand(operand, 0, SourceFiles().anew)
        assert found.tobytes() == b.reshape(6, 4, 2)[:, :, expert].contiguous().numpy().tobytes()


def test_a_stretch_of_computed_rows_makes_only_those() -> None:
    made = Computed(Cast("F32", "BF16"), (Operand(literal(random(1000)), 4),), 0, 1000, 2)
    asked: list[int] = []

    def counting() -> object:
        from worker.engine.arithmetic import compute

        def counted(operation: Cast, operands: tuple[np.ndarray, ...], first: int, rows: int) -> np.ndarray:
            asked.append(rows)
            return compute(operation, operands, first, rows)

        return counted

    SourceFiles(counting).stretch(made, 20, 10)  # pyright: ignore[reportArgumentType]  # a plain function in its place

    assert asked == [5]


def linear(tensors: list[torch.Tensor], weights: torch.Tensor, _: float) -> torch.Tensor:
    return merge_utils.task_arithmetic(tensors, weights)


METHODS = {
    "linear": linear,
    "magnitude_prune": merge_utils.magnitude_prune,
    "ties": merge_utils.ties,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.25, 0.5])
def test_combinations_are_pefts_functions(method: str, density: float) -> None:
    factors = [
        (0.5, random(4, 30), random(20, 4)),
        (2.0, random(4, 30), random(20, 4)),
        (1.1, random(4, 30), random(20, 4)),
    ]
    scaled = [(scale, a.numpy(), b.numpy()) for scale, a, b in factors]

    b, a = combined(Combination(method, density), scaled)  # pyright: ignore[reportArgumentType]  # one of its names

    weights = torch.tensor([scale**0.5 for scale, _, _ in factors])
    for found, place in ((a, 1), (b, 2)):
        expected = METHODS[method]([pair[place] for pair in factors], weights, density)
        torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_drops_by_chance_and_scales_up_what_stays(method: str) -> None:
    a, b = np.ones((4, 20_000), np.float32), np.ones((4, 4), np.float32)

    _, mixed = combined(Combination(method, 0.25, seed=(1,)), [(1.0, a, b)])  # pyright: ignore[reportArgumentType]  # one of its names

    assert set(np.unique(mixed)) == {0.0, 4.0}
    assert mixed.mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("quantile", [0.8, 1.0])
def test_a_clamp_cuts_as_peft_does(quantile: float) -> None:
    """By PEFT's own formula on the same factors: singular vectors' signs, which it depends on, are nobody's choice."""
    factors = [(0.7, random(4, 30).numpy(), random(20, 4).numpy()) for _ in range(2)]
    b, a = (torch.from_numpy(part.copy()) for part in combined(Combination("svd"), factors))

    found = combined(Combination("svd", svd_clamp=quantile), factors)

    most = torch.quantile(torch.cat([b.flatten(), a.flatten()]), quantile)
    for ours, theirs in zip(found, (b, a), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs.clamp(-most, most))
