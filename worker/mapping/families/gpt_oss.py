"""gpt-oss: attention sinks, a window in every second layer, biases everywhere, experts fused and transposed, yarn."""

from dataclasses import dataclass, field, replace

from ..attention import HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Only, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layouts import Permuted
from ..moe import EXPERTS_OF_MCORE, MOE_CONSTRUCTION, ROUTING, AlwaysNormalized
from ..record import Record
from ..rope import Rope
from ..rules import HFTensor, Rule, always
from ..sizes import sizes
from ..windows import layer_type_names, layer_types, windows_to_hf, windows_to_mcore
from .llama import (
    ATTENTION,
    ATTENTION_BIASES,
    ATTENTION_WEIGHTS,
    CONSTRUCTION,
    DROPS,
    EMBEDDINGS,
    LAYER,
    MLP,
    decoder_shape,
)

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True, slots=True)
class OssRope:
    """Rope, which is yarn where the config says nothing."""

    rope: Rope = field(default_factory=lambda: Rope(default_theta=150000.0))

    @property
    def hf(self) -> tuple[str, ...]:
        return self.rope.hf

    @property
    def mcore(self) -> tuple[str, ...]:
        return self.rope.mcore

    def to_mcore(self, config: Record) -> dict[str, object]:
        silent = config.get("rope_parameters") is None and config.get("rope_scaling") is None
        spoken = Record({**config.values, "rope_parameters": _YARN}, config.origin) if silent else config
        return self.rope.to_mcore(spoken)

    def to_hf(self, values: Record) -> dict[str, object]:
        return self.rope.to_hf(values)


@dataclass(frozen=True, slots=True)
class AlternateWindows:
    """`layer_types`; where the config says nothing, every layer with an even number has the window."""

    window: int = 128
    hf: tuple[str, ...] = field(default=("sliding_window", "layer_types"), init=False)
    mcore: tuple[str, ...] = field(default=("window_size", "window_attn_skip_freq"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        sliding = layer_types(config, [layer % 2 == 0 for layer in range(config.positive("num_hidden_layers"))])
        return windows_to_mcore(config.positive("sliding_window", self.window), sliding)

    def to_hf(self, values: Record) -> dict[str, object]:
        window, sliding = windows_to_hf(values)
        # HF's class makes a mask of the window even where no layer has it: it cannot be null.
        return {"sliding_window": window or self.window, "layer_types": layer_type_names(sliding)}


EXPERTS = (
    Rule(
        hf=(HFTensor(LAYER + "post_attention_layernorm.weight", ("hidden",)),),
        mcore="decoder.layers.{layer}.pre_mlp_layernorm.weight",
    ),
    Rule(
        hf=(HFTensor(MLP + "router.weight", ("experts", "hidden")),), mcore="decoder.layers.{layer}.mlp.router.weight"
    ),
    Rule(hf=(HFTensor(MLP + "router.bias", ("experts",)),), mcore="decoder.layers.{layer}.mlp.router.bias"),
    # HF multiplies from the right, and lets gate and up take turns along the last axis.
    Rule(
        hf=(HFTensor(MLP + "experts.gate_up_proj", ("hidden", "gated_moe_ffn"), stacked="experts"),),
        mcore=EXPERTS_OF_MCORE + "linear_fc1.weight",
        layout=Permuted(("hidden", "moe_ffn", 2), (2, 1, 0)),
        shape=("gated_moe_ffn", "hidden"),
    ),
    Rule(
        hf=(HFTensor(MLP + "experts.gate_up_proj_bias", ("gated_moe_ffn",), stacked="experts"),),
        mcore=EXPERTS_OF_MCORE + "linear_fc1.bias",
        layout=Permuted(("moe_ffn", 2), (1, 0)),
        shape=("gated_moe_ffn",),
    ),
    Rule(
        hf=(HFTensor(MLP + "experts.down_proj", ("moe_ffn", "hidden"), stacked="experts"),),
        mcore=EXPERTS_OF_MCORE + "linear_fc2.weight",
        layout=Permuted(("moe_ffn", "hidden"), (1, 0)),
    ),
    Rule(
        hf=(HFTensor(MLP + "experts.down_proj_bias", ("hidden",), stacked="experts"),),
        mcore=EXPERTS_OF_MCORE + "linear_fc2.bias",
    ),
)

SINKS = Rule(
    hf=(HFTensor(ATTENTION + "sinks", ("heads",)),),
    mcore="decoder.layers.{layer}.self_attention.core_attention.softmax_offset",
)

GPT_OSS = Family(
    name="gpt_oss",
    page="worker/mapping/families/gpt_oss.py",
    model_types=("gpt_oss",),
    architectures=("GptOssForCausalLM",),
    features=("MoE", "attention sinks", "windows by layer", "biases", "GQA", "rope: default, llama3, linear, yarn"),
    fields=(
        *(codec for codec in decoder_shape(eps=1e-5) if "activation_func" not in codec.mcore),
        HeadSize(default=64),
        KeyValueHeads(default=8),
        Renamed("max_position_embeddings", "seq_length", int, 131072),
        AlternateWindows(),
        OssRope(),
        CONSTRUCTION,
        Only("attention_bias", True, "Megatron gives every linear layer a bias, as all released models have."),
        Only("swiglu_alpha", 1.702, "Megatron-Core's quick_gelu has this gain alone."),
        Renamed("swiglu_limit", "activation_func_clamp_value", float, 7.0),
        Renamed("num_local_experts", "num_moe_experts", int, 128, also=("num_experts",)),
        *ROUTING,
        AlwaysNormalized(),
        MOE_CONSTRUCTION,
        Fixed(
            {
                "add_bias_linear": True,
                "softmax_type": "learnable",
                "activation_func": "quick_gelu",
                "glu_linear_offset": 1.0,
                "moe_layer_freq": 1,
            }
        ),
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("hidden_act", "HF's experts always have their clamped SwiGLU"),
        Ignored("experts_per_token", "repeats num_experts_per_tok; HF's class does not read it"),
        Ignored("initial_context_length", "repeats yarn's original length; HF's class does not read it"),
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
    ),
    nulls=(*NULLS, "layer_types"),
    sizes=lambda values: {**sizes(values), "gated_moe_ffn": 2 * values.positive("ffn_hidden_size")},
    rules=(
        *EMBEDDINGS,
        *ATTENTION_WEIGHTS,
        *(replace(rule, when=always) for rule in ATTENTION_BIASES),
        SINKS,
        *EXPERTS,
    ),
    drops=DROPS,
    unproven=("expert tensor parallelism above 1: Megatron-Core 0.19 adds an expert's output bias on every rank",),
)
