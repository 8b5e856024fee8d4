"""Random HF models with a tokenizer, and a batch whose labels are what the model itself says comes next.

A model with other weights finds those labels far less likely: its loss tells the two apart at once.
"""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3MoeConfig

from .settings import Family

_SHARED = {"tie_word_embeddings": False, "max_position_embeddings": 8192}
_TINY = {
    "initializer_range": 0.15,
    "vocab_size": 257,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
}
_WIDE = {
    "initializer_range": 0.03,
    "vocab_size": 32001,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "head_dim": 128,
}
_SHAPES: dict[tuple[Family, str], dict[str, Any]] = {
    ("llama", "tiny"): _TINY | {"num_key_value_heads": 2, "intermediate_size": 128},
    ("llama", "1b"): _WIDE | {"num_hidden_layers": 18, "num_key_value_heads": 8, "intermediate_size": 6144},
    ("qwen3-moe", "tiny"): _TINY
    | {"num_key_value_heads": 2, "intermediate_size": 128, "moe_intermediate_size": 48}
    | {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ("qwen3-moe", "1b"): _WIDE
    | {"num_hidden_layers": 12, "num_key_value_heads": 4, "intermediate_size": 6144, "moe_intermediate_size": 768}
    | {"num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True},
}
_CONFIGS = {"llama": LlamaConfig, "qwen3-moe": Qwen3MoeConfig}


def make(folder: Path, family: Family, size: str, device: str) -> None:
    """Write the model in bf16 and a tokenizer of as many words, unless they are there."""
    if (folder / "config.json").exists():
        return
    config = _CONFIGS[family](**_SHARED, **_SHAPES[family, size])
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    _forget(model)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0", unk_token="w0").save_pretrained(folder)


def make_batch(folder: Path, samples: int, length: int, device: str) -> dict[str, np.ndarray]:
    """Random tokens [samples, length], and labels of the same shape."""
    model = _load(folder, torch.float32, device)
    tokens = torch.randint(1, model.config.vocab_size, (samples, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = torch.cat([model(one[None].to(device)).logits.argmax(-1).cpu() for one in tokens])
    _forget(model)
    return {"tokens": tokens.numpy(), "labels": labels.numpy()}


def hf_losses(folder: Path, batch: dict[str, np.ndarray], device: str) -> dict[str, float]:
    """HF's own mean loss, by the precision that it computes in; the loss itself is always taken in fp32."""
    return {name: _loss(folder, batch, getattr(torch, name), device) for name in ("float32", "bfloat16")}


def _loss(folder: Path, batch: dict[str, np.ndarray], dtype: torch.dtype, device: str) -> float:
    model, total = _load(folder, dtype, device), 0.0
    tokens, labels = (torch.from_numpy(batch[name]).to(device) for name in ("tokens", "labels"))
    with torch.no_grad():
        for one, wanted in zip(tokens, labels, strict=True):
            logits = model(one[None]).logits[0].float()
            total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
    _forget(model)
    return total / tokens.numel()


def _load(folder: Path, dtype: torch.dtype, device: str) -> Any:
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device).eval()


def _forget(model: Any) -> None:
    """The ranks need the GPU's memory."""
    model.to("cpu")
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
