"""What each decoder layer is made of: a mixer of tokens, an MLP, or both."""

from dataclasses import dataclass
from typing import Literal, cast

from ..mapping.layer_sets import moe_pattern
from ..mapping.record import Record

Mixer = Literal["attention", "latent attention", "delta net", "mamba"]
Mlp = Literal["dense", "experts"]


@dataclass(frozen=True, slots=True)
class LayerKind:
    """None: the layer has no such half, as those of hybrid models have either."""

    mixer: Mixer | None
    mlp: Mlp | None


_HYBRID = {
    "M": LayerKind("mamba", None),
    "*": LayerKind("attention", None),
    "-": LayerKind(None, "dense"),
    "E": LayerKind(None, "experts"),
}
"""By the letters of Megatron's `hybrid_layer_pattern`."""


def layer_kinds(values: Record) -> tuple[LayerKind, ...]:
    """Of all decoder layers. Those of multi-token prediction are as the last one (`get_gpt_mtp_block_spec`)."""
    pattern = values.get("hybrid_layer_pattern")
    if pattern is not None:
        return tuple(_HYBRID[letter] for letter in values.text("hybrid_layer_pattern"))
    mlps: tuple[Mlp, ...] = tuple("experts" if is_moe else "dense" for is_moe in moe_pattern(values))
    return tuple(LayerKind(mixer, mlp) for mixer, mlp in zip(_mixers(values), mlps, strict=True))


def _mixers(values: Record) -> tuple[Mixer, ...]:
    linear = values.get("linear_attention_freq")
    if linear is not None:
        return tuple("delta net" if is_linear else "attention" for is_linear in cast("list[int]", linear))
    attention: Mixer = "latent attention" if values.get("multi_latent_attention") else "attention"
    return (attention,) * values.positive("num_layers")
