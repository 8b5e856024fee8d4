"""For trainers: what an import left in the trainer's own process, adapters, checkpoints and weight streams.

Names are imported when they are first used: some need torch and Megatron-Core, which take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .load import for_this_host, load_model_config

if TYPE_CHECKING:
    from .adapter_checkpoint import (
        adapter_state_dict,
        create_peft_hook,
        load_peft_adapter_checkpoint,
        save_peft_adapter_checkpoint,
    )
    from .adapting import add_adapters, is_adapter_key, merged_adapters
    from .ddp import create_ddp_config
    from .direct_load import DirectLoadStrategy
    from .frozen_router import freeze_moe_router
    from .hf_stream import hf_to_mcore
    from .mcore_stream import mcore_to_hf
    from .model_checkpoint import generate_model_state_dict, load_checkpoint, save_checkpoint
    from .model_setup import configure, finalize_model_config
    from .peft import Peft, create_peft
    from .value_model import make_value_model

_PLACES = {
    "DirectLoadStrategy": "direct_load",
    "Peft": "peft",
    "adapter_state_dict": "adapter_checkpoint",
    "add_adapters": "adapting",
    "configure": "model_setup",
    "create_ddp_config": "ddp",
    "create_peft": "peft",
    "create_peft_hook": "adapter_checkpoint",
    "finalize_model_config": "model_setup",
    "freeze_moe_router": "frozen_router",
    "generate_model_state_dict": "model_checkpoint",
    "hf_to_mcore": "hf_stream",
    "is_adapter_key": "adapting",
    "load_checkpoint": "model_checkpoint",
    "load_peft_adapter_checkpoint": "adapter_checkpoint",
    "make_value_model": "value_model",
    "mcore_to_hf": "mcore_stream",
    "merged_adapters": "adapting",
    "save_checkpoint": "model_checkpoint",
    "save_peft_adapter_checkpoint": "adapter_checkpoint",
}

__all__ = [
    "DirectLoadStrategy",
    "Peft",
    "adapter_state_dict",
    "add_adapters",
    "configure",
    "create_ddp_config",
    "create_peft",
    "create_peft_hook",
    "finalize_model_config",
    "for_this_host",
    "freeze_moe_router",
    "generate_model_state_dict",
    "hf_to_mcore",
    "is_adapter_key",
    "load_checkpoint",
    "load_model_config",
    "load_peft_adapter_checkpoint",
    "make_value_model",
    "mcore_to_hf",
    "merged_adapters",
    "save_checkpoint",
    "save_peft_adapter_checkpoint",
]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
