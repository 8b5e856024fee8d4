"""Multi-token prediction as DeepSeek's report defines it (2024, equations 21 to 23), around HF's own decoder layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def mtp_states(folder: Path, tokens: list[list[int]], hidden: np.ndarray) -> np.ndarray:
    """What the first of these layers makes of `hidden` [batch, length, hidden] and of the tokens that follow."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    last = config.num_hidden_layers - 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prefix = f"model.layers.{last + 1}."
    own = {name.removeprefix(prefix): value.float() for name, value in tensors.items() if name.startswith(prefix)}
    layer = model.model.layers[last]
    layer.load_state_dict(_fused(own, layer.state_dict()))

    def normed(x: "torch.Tensor", name: str) -> "torch.Tensor":
        return functional.rms_norm(x, x.shape[-1:], own[f"{name}.weight"], config.rms_norm_eps)

    with torch.no_grad():
        following = functional.embedding(torch.tensor(tokens).roll(-1, dims=1), own["embed_tokens.weight"])
        both = torch.cat([normed(following, "enorm"), normed(torch.from_numpy(hidden), "hnorm")], dim=-1)
        x = functional.linear(both, own["eh_proj.weight"])
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        positions = model.model.rotary_emb(x, torch.arange(length)[None])
        x = layer(x, attention_mask=mask, position_embeddings=positions)
        return normed(x[0] if isinstance(x, tuple) else x, "shared_head.norm").numpy()


def _fused(own: Mapping[str, "torch.Tensor"], expected: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """The layer's tensors as HF holds them in memory: its experts stacked, gate on top of up."""
    import torch

    fused = {name: own[name] for name in expected if name in own}
    count = expected["mlp.experts.down_proj"].shape[0]
    experts = [f"mlp.experts.{number}." for number in range(count)]
    halves = ("gate_proj.weight", "up_proj.weight")
    fused["mlp.experts.gate_up_proj"] = torch.stack(
        [torch.cat([own[expert + half] for half in halves]) for expert in experts]
    )
    fused["mlp.experts.down_proj"] = torch.stack([own[f"{expert}down_proj.weight"] for expert in experts])
    return fused
