"""Qwen3 with experts: Qwen3's attention, a router, experts in all layers or in some."""

from ..attention import HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Only, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layer_sets import dense_layers
from ..moe import MOE_CONSTRUCTION, ROUTING, NormalizedTopK, SparseLayers, moe_rules, on
from ..rope import Rope
from ..sizes import sizes
from ..windows import SwitchedWindow
from .llama import ATTENTION_WEIGHTS, CONSTRUCTION, DROPS, EMBEDDINGS, LAYER, MLP, MLP_WEIGHTS, QK_NORMS, decoder_shape

MOE = moe_rules(
    norm=LAYER + "post_attention_layernorm.weight",
    router=MLP + "gate.weight",
    experts=MLP + "experts.{expert}.",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
)

QWEN3_MOE = Family(
    name="qwen3_moe",
    page="worker/mapping/families/qwen3_moe.py",
    model_types=("qwen3_moe",),
    architectures=("Qwen3MoeForCausalLM",),
    features=("MoE", "dense layers among MoE layers", "GQA", "q and k norms", "sliding window", "rope: all of llama"),
    fields=(
        *decoder_shape(),
        HeadSize(),
        KeyValueHeads(default=4),
        Renamed("max_position_embeddings", "seq_length", int, 32768),
        Fixed({"add_bias_linear": False, "add_qkv_bias": False, "qk_layernorm": True}),
        Only("attention_bias", False, "Megatron would give the experts biases too; no released model has any."),
        Only("qkv_bias", False, "HF's class reads attention_bias; this older name of it must agree."),
        Only("use_qk_norm", True, "HF's class always has these norms."),
        Only("shared_expert_intermediate_size", 0, "HF's class has no shared experts."),
        SwitchedWindow(),
        Rope(),
        CONSTRUCTION,
        Renamed("num_experts", "num_moe_experts", int, 128, also=("num_local_experts",)),
        Renamed("moe_intermediate_size", "moe_ffn_hidden_size", int, 768),
        *ROUTING,
        NormalizedTopK(),
        SparseLayers(),
        MOE_CONSTRUCTION,
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("max_window_layers", "read by the dense Qwen3 alone"),
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
    ),
    nulls=(*NULLS, "sliding_window", "mlp_only_layers"),
    sizes=sizes,
    rules=(*EMBEDDINGS, *ATTENTION_WEIGHTS, *QK_NORMS, *on(dense_layers, MLP_WEIGHTS), *MOE),
    drops=DROPS,
)
