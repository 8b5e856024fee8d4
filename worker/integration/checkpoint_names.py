"""Keys of a checkpoint: upstream's two layer specs name some norms differently; trainers use Transformer Engine's."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

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
