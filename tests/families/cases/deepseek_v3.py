"""DeepSeek-V3: query rank or none, groups or none, yarn, dense layers first, MTP, a tied and a bf16 model."""

from typing import Any

from tests.families.case import VOCABULARY, Case, Shapes
from tests.families.cases.llama import OTHER_THETA, PLAIN, yarn

LOCAL = "Megatron's local core attention takes values as wide as keys"
SHAPE: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.7,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "num_nextn_predict_layers": 0,
    "dtype": "float32",
}


def _mtp(config: dict[str, Any]) -> Shapes:
    """One layer after the decoder's, as DeepSeek publishes it, copies of embedding and head included."""
    prefix, hidden, expert = f"model.layers.{config['num_hidden_layers']}.", 48, 48
    heads = config["num_attention_heads"]
    shapes: Shapes = {
        "embed_tokens.weight": "model.embed_tokens.weight",
        "shared_head.head.weight": "lm_head.weight",
        "enorm.weight": (hidden,),
        "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden),
        "shared_head.norm.weight": (hidden,),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_a_proj.weight": (24, hidden),
        "self_attn.q_a_layernorm.weight": (24,),
        "self_attn.q_b_proj.weight": (heads * 20, 24),
        "self_attn.kv_a_proj_with_mqa.weight": (40, hidden),
        "self_attn.kv_a_layernorm.weight": (32,),
        "self_attn.kv_b_proj.weight": (heads * 28, 32),
        "self_attn.o_proj.weight": (hidden, heads * 16),
        "mlp.gate.weight": (8, hidden),
        "mlp.gate.e_score_correction_bias": (8,),
    }
    for owner in ("shared_experts", *(f"experts.{expert_number}" for expert_number in range(8))):
        shapes[f"mlp.{owner}.gate_proj.weight"] = shapes[f"mlp.{owner}.up_proj.weight"] = (expert, hidden)
        shapes[f"mlp.{owner}.down_proj.weight"] = (hidden, expert)
    return {prefix + name: shape for name, shape in shapes.items()}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA, **options: Any) -> Case:
    config = {**SHAPE, **changes}
    return Case(name=name, model_type="deepseek_v3", config=config, control=control, without_local=LOCAL, **options)


CASES = (
    _case("deepseek-v3", {}),
    _case("deepseek-v3-full-rank-queries", {"q_lora_rank": None, "intermediate_size": 80}),
    _case("deepseek-v3-yarn", yarn(mscale=0.8, mscale_all_dim=0.6), yarn(mscale=0.8, mscale_all_dim=0.7)),
    _case("deepseek-v3-yarn-plain", yarn(beta_fast=20.0, beta_slow=2.0), PLAIN),
    _case("deepseek-v3-no-groups", {"n_group": 1, "topk_group": 1, "n_shared_experts": 2, "num_experts_per_tok": 3}),
    _case("deepseek-v3-all-experts-tied", {"first_k_dense_replace": 0, "tie_word_embeddings": True}),
    _case("deepseek-v3-other-epsilon", {"rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-3}),
    _case("deepseek-v3-three-of-four-groups", {"n_routed_experts": 12, "topk_group": 3}, {"topk_group": 2}),
    _case("deepseek-v3-bfloat16", {"dtype": "bfloat16"}),
    _case("deepseek-v3-mtp", {"num_nextn_predict_layers": 1}, add=_mtp),
)
