"""GLM-4.5: rope on a part of each head, biases and norms or none, groups or none, MTP."""

from typing import Any

from tests.families.case import Case, Shapes
from tests.families.cases.deepseek_v3 import SHAPE as DEEPSEEK
from tests.families.cases.llama import SHAPE as LLAMA

_MOE = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "routed_scaling_factor", "first_k_dense_replace")
_SHAPE: dict[str, object] = {
    **LLAMA,
    **{name: DEEPSEEK[name] for name in _MOE},
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "attention_bias": True,
    "use_qk_norm": True,
}


def _rope(part: float, theta: float = 10000.0) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": part}}


def _mtp(config: dict[str, Any]) -> Shapes:
    """One layer after the decoder's, as it is published."""
    prefix, hidden, rows = f"model.layers.{config['num_hidden_layers']}.", 48, {"q": 64, "k": 32, "v": 32}
    shapes: Shapes = {
        "embed_tokens.weight": "model.embed_tokens.weight",
        "shared_head.head.weight": "lm_head.weight",
        "eh_proj.weight": (hidden, 2 * hidden),
        "self_attn.o_proj.weight": (hidden, 64),
        "self_attn.q_norm.weight": (16,),
        "self_attn.k_norm.weight": (16,),
        "mlp.gate.weight": (8, hidden),
        "mlp.gate.e_score_correction_bias": (8,),
    }
    for norm in ("enorm", "hnorm", "shared_head.norm", "input_layernorm", "post_attention_layernorm"):
        shapes[f"{norm}.weight"] = (hidden,)
    for name, count in rows.items():
        shapes[f"self_attn.{name}_proj.weight"], shapes[f"self_attn.{name}_proj.bias"] = (count, hidden), (count,)
    for owner in ("shared_experts", *(f"experts.{number}" for number in range(8))):
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"mlp.{owner}.{name}.weight"] = (48, 48)
    return {prefix + name: shape for name, shape in shapes.items()}


_OTHER_THETA = _rope(0.5, 20000.0)


def _case(name: str, changes: dict[str, object], control: dict[str, object] = _OTHER_THETA, **options: Any) -> Case:
    config = {**_SHAPE, **_rope(0.5), **changes}
    return Case(name=name, model_type="glm4_moe", config=config, control=control, **options)


CASES = (
    _case("glm4-moe", {}),
    _case("glm4-moe-plain", {"attention_bias": False, "use_qk_norm": False, "num_key_value_heads": 1}),
    _case("glm4-moe-other-part", _rope(0.25), _rope(0.5)),
    _case("glm4-moe-groups", {"n_group": 4, "topk_group": 2, "intermediate_size": 80}, {"topk_group": 3}),
    _case("glm4-moe-two-shared-tied", {"n_shared_experts": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    _case("glm4-moe-mtp", {"num_nextn_predict_layers": 1}, add=_mtp),
)
