"""HF <-> Megatron-Core: config fields, tensor rules and plans; pure, and without Megatron at import time."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config_mapping import CONFIG_MAPPING, hf_config_to_model_config, to_hf_config, to_megatron_model_config
    from .provider import to_megatron_provider_kwargs

__all__ = [
    "CONFIG_MAPPING",
    "hf_config_to_model_config",
    "to_hf_config",
    "to_megatron_model_config",
    "to_megatron_provider_kwargs",
]


def __getattr__(name: str) -> object:
    """Public names come when they are first asked for: whoever wants one module here does not load all families."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "provider" if name == "to_megatron_provider_kwargs" else "config_mapping"
    return getattr(import_module(f".{module}", __name__), name)
