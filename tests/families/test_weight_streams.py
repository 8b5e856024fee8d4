"""Streams fill a live model as an import does that Megatron loads, and give what an export writes, bit for bit."""

import pytest
import torch

from tests.families.case import Case
from tests.families.selection import every_case, every_moe_case
from tests.families.test_round_trip import tensors
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks

Bits = tuple[torch.dtype, tuple[int, ...], bytes]


def as_live(found: dict[str, Bits]) -> dict[str, Bits]:
    """Megatron's routers hold their experts' biases in fp32, whatever a checkpoint has them in."""
    return {name: _fp32(bits) if name.endswith("e_score_correction_bias") else bits for name, bits in found.items()}


def _fp32(bits: Bits) -> Bits:
    dtype, shape, data = bits
    return torch.float32, shape, torch.frombuffer(bytearray(data), dtype=dtype).float().numpy().tobytes()


@every_case
def test_a_model_filled_from_hf_is_the_one_that_megatron_loads(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, case: Case
) -> None:
    [(loaded, filled)] = megatron_with_transformer_engine.run(
        "tests.megatron.streams:filled", root=workshop.imported(case), source=workshop.source(case)
    )

    assert filled == loaded


@every_case
def test_a_live_model_gives_back_hfs_tensors(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, case: Case
) -> None:
    [found] = megatron_with_transformer_engine.run("tests.megatron.streams:streamed", root=workshop.imported(case))

    assert dict(found) == as_live(tensors(workshop.source(case)))
    assert len(dict(found)) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", [{"tp_size": 2}, {"pp_size": 2}], ids=["TP2", "PP2"], scope="module")
@every_case
def test_streams_know_parallel_ranks(
    workshop: Workshop, two_ranks_for: Ranks, case: Case, parallelism: dict[str, int]
) -> None:
    _fills_and_gives_back(workshop, two_ranks_for, case, parallelism)


@pytest.mark.slow
@every_moe_case
def test_streams_know_experts_on_two_ranks(workshop: Workshop, two_ranks_for: Ranks, case: Case) -> None:
    _fills_and_gives_back(workshop, two_ranks_for, case, {"ep_size": 2})


def _fills_and_gives_back(workshop: Workshop, ranks: Ranks, case: Case, sizes: dict[str, int]) -> None:
    root, source = workshop.imported(case), workshop.source(case)

    for loaded, filled in ranks.run("tests.megatron.streams:filled", root=root, source=source, **sizes):
        assert filled == loaded
    for found in ranks.run("tests.megatron.streams:streamed", root=root, **sizes):
        assert dict(found) == as_live(tensors(source))
