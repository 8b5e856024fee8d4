"""Keys of a checkpoint: upstream's two layer specs name some norms differently; trainers use Transformer Engine's."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.dist_checkpointing.serialization import load_content_metadata, load_sharded_metadata

from ..checkpoints.common_state import PER_LAYER
from ..mapping.layer_sets import layer_keys_among

_OF_KEYS = ("singleton_local_shards", "non_homogeneous_layers")
_TRANSFORMER_ENGINE_NAMES = (
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
    (".self_attention.q_layernorm.", ".self_attention.linear_q_up_proj.layer_norm_"),
    (".self_attention.kv_layernorm.", ".self_attention.linear_kv_up_proj.layer_norm_"),
)
"""(local layers' name, Transformer Engine's)."""


def saved_name(key: str, keys: Collection[str]) -> str:
    """`key` as it is called among `keys`, which may have Transformer Engine's name for it."""
    others = (key.replace(local, other) for local, other in _TRANSFORMER_ENGINE_NAMES)
    return next((name for name in (key, *others) if name in keys), key)


def use_saved_names(values: Iterable[Any], keys: Collection[str]) -> None:
    """Let a sharded state dict ask for its tensors and objects by the names that are among `keys`."""
    for value in values:
        if isinstance(value, ShardedBase):
            value.key = saved_name(value.key, keys)


def keys_of(path: Path) -> frozenset[str]:
    """Every tensor's and object's key of a checkpoint folder."""
    return frozenset(value.key for value in load_sharded_metadata(str(path)).values())


def content_of(path: Path, keys: Iterable[str]) -> dict[str, bool]:
    """What decides by which keys a model is saved, as a checkpoint's metadata says and its `keys` tell."""
    said = load_content_metadata(str(path)) or {}
    return {**{name: bool(said[name]) for name in _OF_KEYS if name in said}, **content_among(keys)}


def content_among(keys: Iterable[str]) -> dict[str, bool]:
    """The same, as far as keys alone tell it."""
    return PER_LAYER if layer_keys_among(keys) == "per-layer" else {}
