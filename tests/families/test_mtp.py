"""Layers of multi-token prediction, which HF's classes do not compute, against their published definition."""

from pathlib import Path

import pytest

from tests.families.case import CASES, Case
from tests.families.mtp_reference import mtp_states
from tests.families.test_logits import TOLERANCE, difference
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks

mtp_cases = pytest.mark.parametrize("case", [case for case in CASES if case.add], ids=str)


@mtp_cases
def test_megatrons_mtp_layer_computes_what_is_published(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, case: Case
) -> None:
    assert mtp_difference(megatron_with_transformer_engine, workshop.imported(case), workshop.source(case), case) < (
        TOLERANCE
    )


def mtp_difference(megatron: Ranks, root: Path, source: Path, case: Case) -> float:
    """The largest difference of its hidden states, as a part of their range; the last token has none after it."""
    [(taken, given)] = megatron.run("tests.megatron.model:mtp_states", root=root, tokens=case.tokens)

    return difference(given[:, :-1], mtp_states(source, case.tokens, taken)[:, :-1])
