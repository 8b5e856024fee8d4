"""Qwen3: q and k norms, biases or none, windows by `layer_types`."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, PLAIN, SHAPE, yarn


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA) -> Case:
    return Case(name=name, model_type="qwen3", config={**SHAPE, **changes}, control=control)


CASES = (
    _case("qwen3", {}),
    _case("qwen3-biased", {"attention_bias": True, "num_key_value_heads": 4}),
    _case("qwen3-tied-eps", {"tie_word_embeddings": True, "rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-3}),
    _case(
        "qwen3-windows",
        {
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    _case("qwen3-yarn-wide", {"intermediate_size": 80} | yarn(), PLAIN),
)
