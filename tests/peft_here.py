"""Random PEFT adapters of small models, and what PEFT itself makes of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def load(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def write_adapter(base: Path, folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any) -> Path:
    """An adapter as training leaves it: no factor zero, magnitudes and saved modules moved."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, **fields})
    model: Any = get_peft_model(load(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name or "modules_to_save" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter))
            elif "lora_" in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
    if dtype != torch.float32:
        model = model.to(dtype)
    model.save_pretrained(folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(base)}))
    return folder


def adapted(base: Path, adapters: Sequence[Path], dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """The base with adapters beside it, named a0, a1, ..., all active."""
    model: Any = PeftModel.from_pretrained(load(base, dtype), str(adapters[0]), "a0", **options)
    for number, adapter in enumerate(adapters[1:], 1):
        model.load_adapter(str(adapter), f"a{number}", **options)
    if dtype == torch.float64:  # PEFT keeps factors in their own dtype
        model = model.to(dtype)
    return model


def merged(model: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    return dict(model.merge_and_unload(adapter_names=list(names)).state_dict())
