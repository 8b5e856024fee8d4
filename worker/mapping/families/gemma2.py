"""Gemma 2: Gemma with softcaps, a norm on both sides of attention and MLP, and a window in every second layer."""

from dataclasses import dataclass, field, replace

from ..attention import KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Renamed
from ..hf_fields import NULLS
from ..record import Record
from ..rope import Rope
from ..rules import HFTensor, Rule
from ..sizes import sizes
from ..softcap import Softcap
from ..windows import layer_type_names, layer_types, windows_to_hf, windows_to_mcore
from .gemma import GEMMA_IGNORED, TanhGelu, gemma_shape, tied_by_default
from .llama import ATTENTION_BIASES, ATTENTION_WEIGHTS, DROPS, EMBEDDINGS, LAYER, MLP_FILLS, MLP_WEIGHTS


@dataclass(frozen=True, slots=True)
class AttentionScale:
    """Scores are divided by the root of `query_pre_attn_scalar`, which need not be the head size."""

    hf: tuple[str, ...] = field(default=("query_pre_attn_scalar",), init=False)
    mcore: tuple[str, ...] = field(default=("softmax_scale",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return {"softmax_scale": config.positive("query_pre_attn_scalar", 256) ** -0.5}

    def to_hf(self, values: Record) -> dict[str, object]:
        scale = values.number("softmax_scale", values.positive("kv_channels") ** -0.5)
        scalar = round(scale**-2)
        if abs(scalar**-0.5 - scale) > 1e-9 * scale:
            raise values.unsupported("softmax_scale", "1 / sqrt(a whole number)", "HF's field is an integer.")
        return {"query_pre_attn_scalar": scalar}


@dataclass(frozen=True, slots=True)
class EveryNthLayerFull:
    """All layers have the window but every `every`-th; `layer_types`, where given, says it layer by layer."""

    every: int
    pattern: tuple[str, ...] = ()
    """The field by which older configs say `every`, if there is one."""
    window: int = 4096
    mcore: tuple[str, ...] = field(default=("window_size", "window_attn_skip_freq"), init=False)

    @property
    def hf(self) -> tuple[str, ...]:
        return ("sliding_window", "layer_types", *self.pattern)

    def to_mcore(self, config: Record) -> dict[str, object]:
        every = next((config.positive(name, self.every) for name in self.pattern), self.every)
        layers = range(config.positive("num_hidden_layers"))
        sliding = layer_types(config, [(layer + 1) % every != 0 for layer in layers])
        return windows_to_mcore(config.positive("sliding_window", self.window), sliding)

    def to_hf(self, values: Record) -> dict[str, object]:
        window, sliding = windows_to_hf(values)
        return {"sliding_window": window or self.window, "layer_types": layer_type_names(sliding)}


SANDWICHED_MLP = tuple(
    replace(rule, hf=(HFTensor(LAYER + "pre_feedforward_layernorm.weight", ("hidden",)),))
    if rule.mcore.endswith("layer_norm_weight")
    else rule
    for rule in MLP_WEIGHTS
)
SANDWICH_NORMS = (
    Rule(
        hf=(HFTensor(LAYER + "post_attention_layernorm.weight", ("hidden",)),),
        mcore="decoder.layers.{layer}.self_attention.linear_proj.post_layernorm.weight",
    ),
    Rule(
        hf=(HFTensor(LAYER + "post_feedforward_layernorm.weight", ("hidden",)),),
        mcore="decoder.layers.{layer}.mlp.linear_fc2.post_layernorm.weight",
    ),
)
SANDWICHED_WEIGHTS = (*tied_by_default(EMBEDDINGS), *ATTENTION_WEIGHTS, *SANDWICHED_MLP, *SANDWICH_NORMS)

GEMMA2 = Family(
    name="gemma2",
    page="worker/mapping/families/gemma2.py",
    model_types=("gemma2",),
    architectures=("Gemma2ForCausalLM",),
    features=("GQA", "softcaps", "norms after attention and MLP", "scaled embeddings", "windows by layer"),
    fields=(
        *gemma_shape(TanhGelu("hidden_activation", "hidden_act")),
        KeyValueHeads(default=4),
        Renamed("max_position_embeddings", "seq_length", int, 8192),
        Rope(),
        AttentionScale(),
        Softcap("attn_logit_softcapping", "attention_logit_softcap", 50.0),
        Softcap("final_logit_softcapping", "final_logit_softcap", 30.0),
        EveryNthLayerFull(every=2),
        Fixed({"sandwich_norms": True}),
    ),
    ignored=(*GEMMA_IGNORED, Ignored("sliding_window_size", "an older name of sliding_window, which HF reads alone")),
    nulls=(*NULLS, "attn_logit_softcapping", "final_logit_softcapping", "layer_types", "use_bidirectional_attention"),
    sizes=sizes,
    rules=(*SANDWICHED_WEIGHTS, *ATTENTION_BIASES),
    fills=MLP_FILLS,
    drops=tied_by_default(DROPS),
    model="variant",
)
