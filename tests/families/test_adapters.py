"""Adapters beside Megatron's layers: they add nothing at first, train alone, fold in, and load at any parallelism."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families.case import BY_NAME
from tests.families.test_logits import TOLERANCE, difference
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks

DENSE, MOE = BY_NAME["gqa"], BY_NAME["qwen3-moe"]
TOKENS = [[(7 * place * (row + 1)) % 257 for place in range(16)] for row in range(2)]
LORA: dict[str, Any] = {"type": "lora", "rank": 4, "alpha": 2}
TYPES = pytest.mark.parametrize("peft_type", ["lora", "canonical_lora", "dora"])
SIZES = pytest.mark.parametrize(
    "sizes", [{"tp_size": 2}, {"tp_size": 2, "sp": 1}, {"pp_size": 2}], ids=["TP2", "TP2-SP", "PP2"]
)


def laws(answers: list[dict[str, Any]]) -> None:
    """Of what `logits_with_adapters` gives on each rank."""
    for answer in (answer for answer in answers if answer["base"] is not None):
        assert np.array_equal(answer["fresh"], answer["base"])
        assert difference(answer["moved"], answer["base"]) > 100 * TOLERANCE
        # fp32 sums in another order: (W + s B A) x for W x + s B (A x).
        assert difference(answer["merged"], answer["moved"]) < TOLERANCE
    assert all(answer["kept"] for answer in answers)


@TYPES
@pytest.mark.parametrize("case", [DENSE, BY_NAME["all-biases"]], ids=str)
def test_adapters_add_nothing_at_first_and_fold_in(
    workshop: Workshop, megatron: Ranks, case: Any, peft_type: str
) -> None:
    peft = {**LORA, "type": peft_type}

    laws(_logits(workshop, megatron, case, peft, {}))


def _logits(workshop: Workshop, ranks: Ranks, case: Any, peft: dict[str, Any], sizes: dict[str, int]) -> Any:
    root = workshop.imported(case)
    return ranks.run("tests.megatron.adapters:logits_with_adapters", root=root, peft=peft, tokens=TOKENS, sizes=sizes)
