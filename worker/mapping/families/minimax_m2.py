"""MiniMax-M2: sigmoid-routed experts with a balancing bias, norms over all heads, rope on a part of each head."""

from dataclasses import dataclass, field, replace

from ..attention import HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Renamed
from ..hf_fields import WITHOUT_EFFECT
from ..moe import MOE_CONSTRUCTION, ONE_NORMALIZED_EXPERT, moe_rules, router_bias_rule
from ..partial_rope import PartialRope
from ..record import Record
from ..rope import Rope
from ..sizes import sizes
from .llama import ATTENTION_WEIGHTS, CONSTRUCTION, DROPS, EMBEDDINGS, LAYER, decoder_shape
from .olmoe import ALL_HEADS_NORMS

_ROPE = PartialRope(Rope(default_theta=5_000_000.0))
_MOE = LAYER + "block_sparse_moe."
_BUILT_IN: dict[str, object] = {
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "use_routing_bias": True,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
}
_NO_MTP = "of multi-token prediction, which HF's class lacks; the plan refuses its tensors by name"


@dataclass(frozen=True, slots=True)
class RotaryChannels:
    """Released configs count the rotated channels of a head in `rotary_dim`; transformers 5 writes their part."""

    hf: tuple[str, ...] = field(default=(*_ROPE.hf, "rotary_dim"), init=False)
    mcore: tuple[str, ...] = field(default=_ROPE.mcore, init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        if config.get("rotary_dim") is None:
            return _ROPE.to_mcore(config)
        part = config.positive("rotary_dim") / config.positive("head_dim", 128)
        return replace(_ROPE, default=part).to_mcore(config)

    def to_hf(self, values: Record) -> dict[str, object]:
        return _ROPE.to_hf(values)


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """Fields of MiniMax's own code. HF's class has one value of each built in, and no field for it."""

    hf: tuple[str, ...] = field(default=(*_BUILT_IN, "attn_type_list"), init=False)
    mcore: tuple[str, ...] = field(default=(), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        softmax_attention = [1] * config.positive("num_hidden_layers")
        for name, value in (*_BUILT_IN.items(), ("attn_type_list", softmax_attention)):
            if config.get(name) not in (None, value):
                raise config.unsupported(name, repr(value), "HF's class, and this page, know no other.")
        return {}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {}


@dataclass(frozen=True, slots=True)
class ChosenExperts:
    """How many experts a token has; HF divides their scores by their sum, Megatron-Core only those of two or more."""

    hf: tuple[str, ...] = field(default=("num_experts_per_tok",), init=False)
    mcore: tuple[str, ...] = field(default=("moe_router_topk",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        chosen = config.positive("num_experts_per_tok", 8)
        if chosen == 1:
            raise config.unsupported("num_experts_per_tok", "two or more", ONE_NORMALIZED_EXPERT)
        return {"moe_router_topk": chosen}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"num_experts_per_tok": values.positive("moe_router_topk")}


SIGMOID_ROUTING = Fixed(
    {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": 1e-3,
        "moe_router_dtype": "fp32",
        "moe_layer_freq": 1,
    }
)

MINIMAX_M2 = Family(
    name="minimax_m2",
    page="worker/mapping/families/minimax_m2.py",
    model_types=("minimax_m2",),
    architectures=("MiniMaxM2ForCausalLM",),
    features=("MoE", "expert bias", "GQA", "q and k norms over all heads", "partial rotary"),
    fields=(
        *decoder_shape(),
        HeadSize(default=128),
        KeyValueHeads(default=8),
        Renamed("max_position_embeddings", "seq_length", int, 196608),
        RotaryChannels(),
        CONSTRUCTION,
        Fixed({"add_bias_linear": False, "add_qkv_bias": False, "qk_norm_width": "full"}),
        Renamed("num_local_experts", "num_moe_experts", int, 256, also=("num_experts",)),
        ChosenExperts(),
        Renamed("router_aux_loss_coef", "moe_aux_loss_coeff", float, 0.001),
        SIGMOID_ROUTING,
        MOE_CONSTRUCTION,
        BuiltIn(),
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("auto_map", "names remote code; HF's own class is used"),
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
        Ignored("router_jitter_noise", "noise on the experts' input while HF trains; evaluation has none", other=0.1),
        Ignored("sliding_window", "HF's class has no window, whatever is written"),
        Ignored("use_mtp", _NO_MTP),
        Ignored("num_mtp_modules", _NO_MTP),
        Ignored("mtp_transformer_layers", _NO_MTP),
    ),
    sizes=sizes,
    rules=(
        *EMBEDDINGS,
        *ATTENTION_WEIGHTS,
        *ALL_HEADS_NORMS,
        *moe_rules(
            norm=LAYER + "post_attention_layernorm.weight",
            router=_MOE + "gate.weight",
            experts=_MOE + "experts.{expert}.",
            gate="w1",
            up="w3",
            down="w2",
        ),
        *router_bias_rule(_MOE + "e_score_correction_bias"),
    ),
    drops=DROPS,
    model="variant",
)
