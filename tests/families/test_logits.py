"""Megatron, loading our import of a random model, gives HF's logits."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.families.case import Case, logits
from tests.families.proof_record import DIFFERENCE
from tests.families.selection import every_case, every_local_case, every_moe_case
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks

# fp32 sums in another order; 3e-6 was the largest measured, and what a wrong config changes is a thousand times that.
TOLERANCE = 1e-5
"""Largest difference, as a part of the logits' range."""


def difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two logits, as a part of the reference's range. Padding is cut off."""
    return float(np.abs(ours[..., : reference.shape[-1]] - reference).max() / np.ptp(reference))


@pytest.fixture
def reference(workshop: Workshop, case: Case) -> np.ndarray:
    """HF's own logits of the case."""
    return logits(workshop.source(case), case.tokens).numpy()


@every_case
def test_what_a_case_is_about_shows_in_the_logits(workshop: Workshop, case: Case, reference: np.ndarray) -> None:
    otherwise = logits(workshop.source(case), case.tokens, **case.control).numpy()

    assert difference(otherwise, reference) > 100 * TOLERANCE


@every_local_case
def test_megatrons_local_layers_give_hfs_logits(
    workshop: Workshop,
    megatron: Ranks,
    case: Case,
    reference: np.ndarray,
    record_property: Callable[[str, object], None],
) -> None:
    [ours] = megatron.run("tests.megatron.model:logits", root=workshop.imported(case), tokens=case.tokens)

    record_property(DIFFERENCE, difference(ours, reference))
    assert difference(ours, reference) < TOLERANCE


@every_case
def test_the_layers_that_trainers_use_give_hfs_logits(
    workshop: Workshop,
    megatron_with_transformer_engine: Ranks,
    case: Case,
    reference: np.ndarray,
    record_property: Callable[[str, object], None],
) -> None:
    root = workshop.imported(case)

    [ours] = megatron_with_transformer_engine.run("tests.megatron.model:logits", root=root, tokens=case.tokens)

    record_property(DIFFERENCE, difference(ours, reference))
    assert difference(ours, reference) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", [{"tp_size": 2}, {"pp_size": 2}], ids=["TP2", "PP2"], scope="module")
@every_case
def test_parallel_ranks_give_hfs_logits(
    workshop: Workshop, two_ranks_for: Ranks, case: Case, parallelism: dict[str, int], reference: np.ndarray
) -> None:
    root = workshop.imported(case)

    answers = two_ranks_for.run("tests.megatron.model:logits", root=root, tokens=case.tokens, **parallelism)

    for ours in (answer for answer in answers if answer is not None):
        assert difference(ours, reference) < TOLERANCE
    assert answers[-1] is not None


@pytest.mark.slow
@every_moe_case
def test_experts_on_two_ranks_give_hfs_logits(
    workshop: Workshop, two_ranks_for: Ranks, case: Case, reference: np.ndarray
) -> None:
    root = workshop.imported(case)

    answers = two_ranks_for.run("tests.megatron.model:logits", root=root, tokens=case.tokens, ep_size=2)

    for ours in answers:
        assert difference(ours, reference) < TOLERANCE
