"""MiniMax-M2: rope on half a head, on all of it; the released spelling of the config."""

from typing import Any

from tests.families.case import Case
from tests.families.cases.llama import SHAPE, THETA, rope

_HALF = rope("default", partial_rotary_factor=0.5)
_SHAPE: dict[str, object] = {**SHAPE, **_HALF, "num_local_experts": 6, "num_experts_per_tok": 3}


def _released_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """As MiniMax publishes it: rotated channels by number, and fields of MiniMax's own code."""
    del config["rope_parameters"]
    return config | {
        "rope_theta": THETA,
        "rotary_dim": 8,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "use_routing_bias": True,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "attn_type_list": [1] * config["num_hidden_layers"],
        "use_mtp": True,
        "num_mtp_modules": 3,
        "mtp_transformer_layers": 1,
    }


def _case(name: str, changes: dict[str, object], control: dict[str, object], **options: Any) -> Case:
    return Case(name=name, model_type="minimax_m2", config={**_SHAPE, **changes}, control=control, **options)


CASES = (
    _case("minimax-m2", {}, rope("default", partial_rotary_factor=0.75)),
    _case("minimax-m2-released-spelling", {}, {"num_experts_per_tok": 2}, respell=_released_spelling),
    _case("minimax-m2-whole-heads", {**rope("default"), "num_key_value_heads": 4}, _HALF),
    _case("minimax-m2-tied", {"tie_word_embeddings": True, "intermediate_size": 80}, {"num_experts_per_tok": 2}),
    _case("minimax-m2-bfloat16", {"dtype": "bfloat16"}, {"num_experts_per_tok": 2}),
)
