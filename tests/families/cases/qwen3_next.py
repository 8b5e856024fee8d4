"""Qwen3-Next: delta nets and full attention in turn, a dense layer, more value heads than key heads or as many."""

from tests.families.case import Case
from tests.families.cases.llama import SHAPE

_SHAPE: dict[str, object] = {
    **SHAPE,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}


def _rope(part: float, theta: float = 10000.0) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": part}}


_OTHER_THETA = _rope(0.25, 20000.0)


def _case(name: str, changes: dict[str, object], control: dict[str, object] = _OTHER_THETA) -> Case:
    return Case(
        name=name,
        model_type="qwen3_next",
        config={**_SHAPE, **_rope(0.25), **changes},
        control=control,
        zero_centered=True,
        without_local="Megatron-Core builds gated delta nets of Transformer Engine's layers alone",
    )


CASES = (
    _case("qwen3-next", {}),
    _case("qwen3-next-dense-first", {"mlp_only_layers": [0], "intermediate_size": 80, "num_key_value_heads": 1}),
    _case(
        "qwen3-next-as-many-heads", {"linear_num_value_heads": 2, "linear_value_head_dim": 8} | _rope(0.5), _rope(0.25)
    ),
    _case(
        "qwen3-next-not-normalized", {"norm_topk_prob": False, "moe_intermediate_size": 40}, {"norm_topk_prob": True}
    ),
    _case("qwen3-next-tied-mha", {"tie_word_embeddings": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-2}),
)
