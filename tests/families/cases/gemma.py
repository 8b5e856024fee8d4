"""Gemma: one or many key heads, tied or not, biases, both names of its activation."""

from typing import Any

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, SHAPE, rope

SHAPE_OF_GEMMA: dict[str, object] = {**SHAPE, "tie_word_embeddings": True}


def _old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """As the first release: `hidden_act` says gelu and means its tanh approximation; ties go without saying."""
    del config["tie_word_embeddings"]
    theta = config.pop("rope_parameters")["rope_theta"]
    return config | {"hidden_act": "gelu", "hidden_activation": None, "rope_theta": theta, "rope_scaling": None}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA, **options: Any) -> Case:
    config = {**SHAPE_OF_GEMMA, **changes}
    return Case(name=name, model_type="gemma", config=config, control=control, zero_centered=True, **options)


CASES = (
    _case("gemma", {"num_key_value_heads": 1}),
    _case("gemma-old-spelling", {}, respell=_old_spelling),
    _case("gemma-untied-mha", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    _case("gemma-attention-bias", {"attention_bias": True}),
    _case("gemma-linear", rope("linear", factor=4.0), rope("default")),
    _case("gemma-bfloat16", {"dtype": "bfloat16"}),
)
