"""DeepSeek-V3 and R1, Kimi-K2, Moonlight: latent attention, experts in groups, multi-token prediction."""

from ..family import Family
from ..fields import Fixed, Ignored, Only, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layer_sets import dense_layers
from ..mla import ATTENTION_WEIGHTS, LATENT_ATTENTION, RotaryHeadSize, latent_sizes
from ..moe import (
    SIGMOID_ROUTER,
    DenseFirst,
    Groups,
    SeveralExperts,
    SharedExperts,
    moe_rules,
    on,
    router_bias_rule,
    shared_expert_rules,
)
from ..mtp import PredictedTokens, mtp_copies, mtp_rules
from ..record import Record
from .llama import CONSTRUCTION, DROPS, EMBEDDINGS, LAYER, MLP, MLP_WEIGHTS, decoder_shape, untied

EXPERTS = (
    *moe_rules(
        norm=LAYER + "post_attention_layernorm.weight",
        router=MLP + "gate.weight",
        experts=MLP + "experts.{expert}.",
        gate="gate_proj",
        up="up_proj",
        down="down_proj",
    ),
    *shared_expert_rules(MLP + "shared_experts."),
)
BIASED_EXPERTS = (*EXPERTS, *router_bias_rule(MLP + "gate.e_score_correction_bias"))

WITHOUT_EPSILON = tuple(codec for codec in decoder_shape() if "rms_norm_eps" not in codec.hf)
WITHOUT_ROPE_FUSION = Fixed({name: value for name, value in CONSTRUCTION.values.items() if name != "apply_rope_fusion"})


def sizes(values: Record) -> dict[str, int]:
    """Latent attention's, and two hidden states side by side."""
    return {**latent_sizes(values), "two_hidden": 2 * values.positive("hidden_size")}


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    page="worker/mapping/families/deepseek_v3.py",
    model_types=("deepseek_v3", "kimi_k2"),
    architectures=("DeepseekV3ForCausalLM",),
    features=("MLA", "MoE", "experts in groups", "expert bias", "shared experts", "MTP", "rope: default, yarn"),
    fields=(
        *WITHOUT_EPSILON,
        *LATENT_ATTENTION,
        WITHOUT_ROPE_FUSION,
        Renamed("max_position_embeddings", "seq_length", int, 4096),
        Renamed("n_routed_experts", "num_moe_experts", int, 256, also=("num_local_experts",)),
        SeveralExperts(default=8),
        Renamed("moe_intermediate_size", "moe_ffn_hidden_size", int, 2048),
        Renamed("routed_scaling_factor", "moe_router_topk_scaling_factor", float, 2.5),
        SharedExperts(),
        DenseFirst(default=3),
        Groups(scores_summed=2, n_group=8, topk_group=4),
        SIGMOID_ROUTER,
        PredictedTokens(),
        RotaryHeadSize(),
        Only("norm_topk_prob", True, "Megatron-Core always normalises sigmoid scores."),
        Only("scoring_func", "sigmoid", "HF's class knows no other."),
        Only("topk_method", "noaux_tc", "HF's class knows no other."),
        Only("rope_interleave", True, "Megatron-Core's latent attention reads rotary pairs interleaved."),
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("qk_head_dim", "HF's class sets it to the sum of both parts, whatever is written"),
        Ignored("ep_size", "a trainer's expert parallelism"),
        Ignored("seq_aux", "shapes the training loss, not the forward pass"),
        Ignored("aux_loss_alpha", "weighs a training loss"),
        Ignored("auto_map", "names remote code; HF's own class is used"),
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
    ),
    nulls=(*NULLS, "num_key_value_heads", "q_lora_rank"),
    sizes=sizes,
    rules=(
        *EMBEDDINGS,
        *ATTENTION_WEIGHTS,
        *on(dense_layers, MLP_WEIGHTS),
        *BIASED_EXPERTS,
        *mtp_rules((*ATTENTION_WEIGHTS, *BIASED_EXPERTS)),
    ),
    drops=DROPS,
    copies=mtp_copies(untied),
)
