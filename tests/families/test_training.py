"""Megatron's training program starts from our import when it is given `--load` and nothing more."""

from pathlib import Path

import pytest

from tests.families.case import BY_NAME, logits
from tests.families.test_logits import TOLERANCE, difference
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.jobs.spec import ImportSpec

CASE = BY_NAME["llama3"]


def test_load_checkpoint_finds_the_release(workshop: Workshop, megatron: Ranks) -> None:
    root = workshop.imported(CASE)

    [(iteration, ours)] = megatron.run("tests.megatron.training:logits_after_load", root=root, tokens=CASE.tokens)

    assert iteration == 0
    assert difference(ours, logits(workshop.source(CASE), CASE.tokens).numpy()) < TOLERANCE


def test_load_checkpoint_goes_on_from_an_iteration(workshop: Workshop, megatron: Ranks, target: Path) -> None:
    workshop.run(ImportSpec(source=str(workshop.source(CASE)), target=str(target), iteration=7))

    # Megatron saves random states with every iteration; a conversion has none.
    [(iteration, ours)] = megatron.run(
        "tests.megatron.training:logits_after_load", root=target, tokens=CASE.tokens, options=("--no-load-rng",)
    )

    assert iteration == 7
    assert difference(ours, logits(workshop.source(CASE), CASE.tokens).numpy()) < TOLERANCE


@pytest.mark.slow
def test_load_checkpoint_finds_the_release_at_tp_2(workshop: Workshop, two_ranks: Ranks) -> None:
    root = workshop.imported(CASE)

    answers = two_ranks.run("tests.megatron.training:logits_after_load", root=root, tokens=CASE.tokens, tp_size=2)

    for _, ours in answers:
        assert difference(ours, logits(workshop.source(CASE), CASE.tokens).numpy()) < TOLERANCE
