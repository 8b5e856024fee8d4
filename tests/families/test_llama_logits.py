"""Megatron, loading our import of a random model, gives HF's logits."""

import numpy as np
import pytest

from tests.families.random_llama import VARIANTS, Variant, logits
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks

# fp32 sums in another order; 3e-6 was the largest measured, and what a wrong config changes is a thousand times that.
TOLERANCE = 1e-5
"""Largest difference, as a part of the logits' range."""

variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of two logits, as a part of the reference's range. Padding is cut off."""
    return float(np.abs(ours[..., : reference.shape[-1]] - reference).max() / np.ptp(reference))


@pytest.fixture
def reference(workshop: Workshop, variant: Variant) -> np.ndarray:
    """HF's own logits of the variant."""
    return logits(workshop.source(variant), variant.tokens).numpy()


@variants
def test_what_a_variant_is_about_shows_in_the_logits(
    workshop: Workshop, variant: Variant, reference: np.ndarray
) -> None:
    otherwise = logits(workshop.source(variant), variant.tokens, **variant.control).numpy()

    assert difference(otherwise, reference) > 100 * TOLERANCE


@variants
def test_megatrons_local_layers_give_hfs_logits(
    workshop: Workshop, megatron: Ranks, variant: Variant, reference: np.ndarray
) -> None:
    [ours] = megatron.run("tests.megatron.model:logits", root=workshop.imported(variant), tokens=variant.tokens)

    assert difference(ours, reference) < TOLERANCE


@variants
def test_the_layers_that_trainers_use_give_hfs_logits(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, variant: Variant, reference: np.ndarray
) -> None:
    root = workshop.imported(variant)

    [ours] = megatron_with_transformer_engine.run("tests.megatron.model:logits", root=root, tokens=variant.tokens)

    assert difference(ours, reference) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2)], ids=["TP2", "PP2"], scope="module")
@variants
def test_parallel_ranks_give_hfs_logits(
    workshop: Workshop, two_ranks: Ranks, variant: Variant, tp_size: int, pp_size: int, reference: np.ndarray
) -> None:
    root = workshop.imported(variant)

    answers = two_ranks.run(
        "tests.megatron.model:logits", root=root, tokens=variant.tokens, tp_size=tp_size, pp_size=pp_size
    )

    for ours in (answer for answer in answers if answer is not None):
        assert difference(ours, reference) < TOLERANCE
    assert answers[-1] is not None
