"""Qwen2: biases on q, k, v; windows from one layer on, or where `layer_types` says."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, PLAIN, SHAPE, yarn


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA) -> Case:
    config = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    return Case(name=name, model_type="qwen2", config={**config, **changes}, control=control)


CASES = (
    _case("qwen2", {}),
    _case("qwen2-tied-mqa", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    _case(
        "qwen2-window",
        {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1},
        {"sliding_window": 18},
    ),
    _case("qwen2-window-everywhere", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    _case("qwen2-yarn-wide", {"intermediate_size": 80} | yarn(), PLAIN),
)
