"""OLMoE: experts in every layer; queries and keys are normed over all heads at once."""

from dataclasses import dataclass, field

from ..attention import KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Only, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..moe import MOE_CONSTRUCTION, NormalizedTopK, moe_rules
from ..record import Record
from ..rope import Rope
from ..rules import HFTensor, Rule
from ..sizes import sizes
from .llama import ATTENTION, ATTENTION_WEIGHTS, CONSTRUCTION, DROPS, EMBEDDINGS, LAYER, MLP, decoder_shape

ALL_HEADS_NORMS = (
    Rule(
        hf=(HFTensor(ATTENTION + "q_norm.weight", ("q_rows",)),),
        mcore="decoder.layers.{layer}.self_attention.q_layernorm.weight",
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "k_norm.weight", ("kv_rows",)),),
        mcore="decoder.layers.{layer}.self_attention.k_layernorm.weight",
    ),
)


@dataclass(frozen=True, slots=True)
class SplitHeads:
    """Heads share the hidden size out: HF's norms are made for no other `head_dim`."""

    hf: tuple[str, ...] = field(default=("head_dim",), init=False)
    mcore: tuple[str, ...] = field(default=("kv_channels",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        size, rest = divmod(config.positive("hidden_size"), config.positive("num_attention_heads"))
        if rest or config.positive("head_dim", size) != size:
            raise config.wrong("head_dim", "hidden_size / num_attention_heads, a whole number")
        return {"kv_channels": size}

    def to_hf(self, values: Record) -> dict[str, object]:
        size = values.positive("hidden_size") // values.positive("num_attention_heads")
        if values.positive("kv_channels", size) != size:
            raise values.unsupported("kv_channels", str(size), "HF's norms are made for no other head size.")
        return {}


OLMOE = Family(
    name="olmoe",
    page="worker/mapping/families/olmoe.py",
    model_types=("olmoe",),
    architectures=("OlmoeForCausalLM",),
    features=("MoE", "GQA", "q and k norms over all heads", "tied embeddings", "rope: all of llama"),
    fields=(
        *decoder_shape(eps=1e-5),
        SplitHeads(),
        KeyValueHeads(),
        Renamed("max_position_embeddings", "seq_length", int, 4096),
        Rope(),
        CONSTRUCTION,
        Fixed({"add_bias_linear": False, "add_qkv_bias": False, "qk_norm_width": "full", "moe_layer_freq": 1}),
        Renamed("num_experts", "num_moe_experts", int, 64, also=("num_local_experts",)),
        Renamed("num_experts_per_tok", "moe_router_topk", int, 8),
        Renamed("router_aux_loss_coef", "moe_aux_loss_coeff", float, 0.01),
        NormalizedTopK(),
        MOE_CONSTRUCTION,
        Only("attention_bias", False, "Megatron would give the experts biases too; no released model has any."),
        Only("clip_qkv", None, "Megatron-Core 0.19 clips no queries, keys or values."),
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
    ),
    nulls=(*NULLS, "num_key_value_heads", "clip_qkv"),
    sizes=sizes,
    rules=(
        *EMBEDDINGS,
        *ATTENTION_WEIGHTS,
        *ALL_HEADS_NORMS,
        *moe_rules(
            norm=LAYER + "post_attention_layernorm.weight",
            router=MLP + "gate.weight",
            experts=MLP + "experts.{expert}.",
            gate="gate_proj",
            up="up_proj",
            down="down_proj",
        ),
    ),
    drops=DROPS,
    model="variant",
)
