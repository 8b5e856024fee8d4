"""Which config class of Megatron's a model has, and which of its values lie outside the `TransformerConfig`."""

from typing import Literal

from .record import Record

ModelKind = Literal["gpt", "hybrid", "variant"]
"""Upstream's `GPTModelConfig` or `HybridModelConfig`, or our `VariantGPTModelConfig`."""

_COMMON = frozenset(
    {
        "vocab_size",
        "should_pad_vocab",
        "make_vocab_size_divisible_by",
        "seq_length",
        "share_embeddings_and_output_weights",
        "position_embedding_type",
        "rotary_percent",
        "rotary_base",
        "seq_len_interpolation_factor",
    }
)
VARIANT_FIELDS = frozenset(
    {
        "embedding_scale",
        "attention_logit_softcap",
        "final_logit_softcap",
        "local_rotary_base",
        "sandwich_norms",
        "qk_norm_width",
        "group_scores_summed",
        "plain_gated_norms",
        "plain_query_projection",
        "latent_norm_epsilon",
    }
)
"""What Megatron-Core lacks and a builder of ours adds. A model with any of these has our class."""

_OUTER: dict[ModelKind, frozenset[str]] = {
    "gpt": _COMMON | {"rope_scaling", "rope_scaling_factor"},
    "hybrid": _COMMON | {"hybrid_layer_pattern"},
    "variant": _COMMON | {"rope_scaling", "rope_scaling_factor"} | VARIANT_FIELDS,
}
# MLATransformerConfig declares these too, and its values hold: upstream reads them there.
_OF_LATENT_ATTENTION = frozenset({"rotary_base", "rotary_percent"})


def model_kind(kind: ModelKind, values: Record) -> ModelKind:
    """The family's class, or ours where the values ask for what upstream's lacks."""
    return "variant" if kind == "gpt" and VARIANT_FIELDS & values.values.keys() else kind


def outer_fields(kind: ModelKind, values: Record) -> frozenset[str]:
    """The values that the outer class holds; all others belong to its transformer config."""
    return _OUTER[kind] - (_OF_LATENT_ATTENTION if values.get("multi_latent_attention") else frozenset())
