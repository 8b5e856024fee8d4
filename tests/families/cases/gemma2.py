"""Gemma 2: softcaps that bite, present and absent; windows by layer; a scale that is not the head size's."""

from typing import Any

from tests.families.case import Case
from tests.families.cases.gemma import SHAPE_OF_GEMMA

_SHAPE: dict[str, object] = {
    **SHAPE_OF_GEMMA,
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 24,
    "sliding_window": 13,
    "attn_logit_softcapping": 0.7,
    "final_logit_softcapping": 5.0,
}
_WINDOWS = ["full_attention", *["sliding_attention"] * 3]


def _old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """As first released: no `layer_types`, two names of window and activation."""
    for name in ("layer_types", "tie_word_embeddings"):
        del config[name]
    theta = config.pop("rope_parameters")["rope_theta"]
    window = config["sliding_window"]
    names = {"hidden_act": "gelu_pytorch_tanh", "sliding_window_size": window, "cache_implementation": "hybrid"}
    return config | names | {"rope_theta": theta, "torch_dtype": config.pop("dtype")}


def _case(name: str, changes: dict[str, object], control: dict[str, object], **options: Any) -> Case:
    config = {**_SHAPE, **changes}
    return Case(name=name, model_type="gemma2", config=config, control=control, zero_centered=True, **options)


CASES = (
    _case("gemma2", {}, {"attn_logit_softcapping": 0.8}),
    _case(
        "gemma2-no-softcaps", {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {"sliding_window": 14}
    ),
    _case("gemma2-old-spelling", {}, {"final_logit_softcapping": 6.0}, respell=_old_spelling),
    _case("gemma2-scale", {"tie_word_embeddings": False}, {"query_pre_attn_scalar": 25}),
    _case("gemma2-layer-types", {"layer_types": _WINDOWS}, {"layer_types": _WINDOWS[::-1]}),
    _case("gemma2-attention-bias", {"attention_bias": True, "num_key_value_heads": 4}, {"sliding_window": 14}),
    _case("gemma2-bfloat16", {"dtype": "bfloat16"}, {"sliding_window": 14}),
)
