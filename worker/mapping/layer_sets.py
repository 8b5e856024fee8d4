"""Which layers a rule speaks of: pairs of HF's layer number and Megatron's."""

import re
from collections.abc import Callable, Iterable
from typing import cast

from ..jobs.spec_fields import LayerKeys
from .record import Record

_MOST_LAYERS = 100_000
_OF_ONE_LAYER = re.compile(r"decoder\.layers\.\d+\.")

LayerPairs = tuple[tuple[int, int], ...]
"""(HF's number, Megatron's number)."""

Layers = Callable[[Record], LayerPairs]
"""The layers of a model with these Megatron values."""


def every_layer(values: Record) -> LayerPairs:
    """All decoder layers."""
    return tuple((layer, layer) for layer in range(layer_count(values)))


def layer_count(values: Record) -> int:
    """BadInputError where there are more than a plan can be made for."""
    count = values.positive("num_layers")
    if count > _MOST_LAYERS:
        raise values.wrong("num_layers", f"at most {_MOST_LAYERS:,} layers")
    return count


def moe_layers(values: Record) -> LayerPairs:
    """Decoder layers whose MLP is made of experts."""
    return tuple((layer, layer) for layer, is_moe in enumerate(moe_pattern(values)) if is_moe)


def dense_layers(values: Record) -> LayerPairs:
    """Decoder layers with an ordinary MLP."""
    return tuple((layer, layer) for layer, is_moe in enumerate(moe_pattern(values)) if not is_moe)


def mtp_layers(values: Record) -> LayerPairs:
    """Multi-token prediction: HF counts its layers on from the decoder's, Megatron from 0."""
    layers = layer_count(values)
    return tuple((layers + number, number) for number in range(values.integer("mtp_num_layers", 0)))


def moe_pattern(values: Record) -> tuple[bool, ...]:
    """For each decoder layer, whether it has experts: `moe_layer_freq` as Megatron reads it."""
    layers = layer_count(values)
    if values.get("num_moe_experts") is None:
        return (False,) * layers
    frequency = values.get("moe_layer_freq")
    if isinstance(frequency, list | tuple):
        return tuple(bool(item) for item in cast("list[int]", frequency))
    every = values.positive("moe_layer_freq", 1)
    return tuple(layer % every == 0 for layer in range(layers))


def layer_keys_among(names: Iterable[str]) -> LayerKeys:
    """What a checkpoint holds: its writer may have asked for keys of their own for layers that are alike."""
    return "per-layer" if any(map(_OF_ONE_LAYER.match, names)) else "stacked"


def one_stack(values: Record) -> bool:
    """Megatron keeps one tensor for all decoder layers, not one a layer, unless its writer asks for the latter.

    Source: `TransformerBlock.sharded_state_dict`.
    """
    frequencies = (values.get("moe_layer_freq"), values.get("linear_attention_freq"))
    if values.get("hetereogenous_dist_checkpoint"):
        return False
    return values.get("hybrid_layer_pattern") is None and all(value in (None, 1) for value in frequencies)
