"""Mistral: no window, a window, and a window with yarn."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, PLAIN, SHAPE, yarn


def _case(name: str, changes: dict[str, object], control: dict[str, object]) -> Case:
    return Case(name=name, model_type="mistral", config={**SHAPE, **changes}, control=control)


CASES = (
    _case("mistral", {"sliding_window": None}, OTHER_THETA),
    _case("mistral-window", {"sliding_window": 17, "intermediate_size": 80}, {"sliding_window": 18}),
    _case(
        "mistral-yarn",
        {"sliding_window": 17, "num_key_value_heads": 1, "tie_word_embeddings": True} | yarn(),
        PLAIN,
    ),
)
