"""Mixtral: Mistral's attention, experts in every layer."""

from ..attention import HeadSize, KeyValueHeads, NoBiases, SlidingWindow
from ..family import Family
from ..fields import Fixed, Ignored, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..moe import MOE_CONSTRUCTION, ROUTING, AlwaysNormalized, moe_rules
from ..rope import Rope
from ..sizes import sizes
from .llama import ATTENTION_WEIGHTS, CONSTRUCTION, DROPS, EMBEDDINGS, LAYER, decoder_shape

MIXTRAL = Family(
    name="mixtral",
    page="worker/mapping/families/mixtral.py",
    model_types=("mixtral",),
    architectures=("MixtralForCausalLM",),
    features=("MoE", "GQA", "sliding window", "tied embeddings", "rope: default, llama3, linear, yarn"),
    fields=(
        *decoder_shape(eps=1e-5),
        HeadSize(),
        KeyValueHeads(default=8),
        Renamed("max_position_embeddings", "seq_length", int, 4096 * 32),
        NoBiases(),
        SlidingWindow(),
        Rope(default_theta=1000000.0),
        CONSTRUCTION,
        Renamed("num_local_experts", "num_moe_experts", int, 8, also=("num_experts",)),
        *ROUTING,
        AlwaysNormalized(),
        Fixed({"moe_layer_freq": 1}),
        MOE_CONSTRUCTION,
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
        Ignored("router_jitter_noise", "noise on the router's input while HF trains; evaluation has none", other=0.1),
    ),
    nulls=(*NULLS, "head_dim", "sliding_window"),
    sizes=sizes,
    rules=(
        *EMBEDDINGS,
        *ATTENTION_WEIGHTS,
        *moe_rules(
            norm=LAYER + "post_attention_layernorm.weight",
            router=LAYER + "block_sparse_moe.gate.weight",
            experts=LAYER + "block_sparse_moe.experts.{expert}.",
            gate="w1",
            up="w3",
            down="w2",
        ),
    ),
    drops=DROPS,
)
