"""Mixtral: experts in every layer, with and without a window."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, SHAPE

_MOE: dict[str, object] = {"num_local_experts": 6, "num_experts_per_tok": 2}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA) -> Case:
    return Case(name=name, model_type="mixtral", config={**SHAPE, **_MOE, **changes}, control=control)


CASES = (
    _case("mixtral", {}),
    _case("mixtral-window", {"sliding_window": 17, "num_key_value_heads": 1}, {"sliding_window": 18}),
    _case(
        "mixtral-tied-top-3",
        {"tie_word_embeddings": True, "num_experts_per_tok": 3, "intermediate_size": 80},
        {"num_experts_per_tok": 2},
    ),
)
