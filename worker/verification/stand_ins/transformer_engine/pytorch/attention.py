"""Causal attention with grouped keys and values, and with a sliding window."""

from typing import Any

import torch
from torch.nn import functional

from .extra_state import ExtraState


def _seen(queries: int, keys: int, window: tuple[int, int] | None, device: torch.device) -> torch.Tensor:
    """Which keys each query sees: none after it, and none further back than the window's left side."""
    distance = torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    seen = distance >= 0
    return seen if window is None or window[0] < 0 else seen & (distance <= window[0])


def _forgive_missing_state(module: torch.nn.Module, incompatible: Any) -> None:
    """As Transformer Engine does: Megatron does not save this module's state."""
    missing: list[str] = incompatible.missing_keys
    missing[:] = [key for key in missing if "core_attention._extra_state" not in key]


def _with_sinks(scores: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Attention weights [batch, heads, queries, keys] that sum to less than one: a sink per head takes the rest."""
    sink = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]


class DotProductAttention(ExtraState):
    """No parameters, but for `softmax_offset` [heads] where the softmax is learnable."""

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        softmax_scale: float | None = None,
        window_size: tuple[int, int] | None = None,
        softmax_type: str = "vanilla",
        tp_size: int = 1,
        **unused: object,
    ) -> None:
        super().__init__()
        self.softmax_scale, self.window_size = softmax_scale, window_size
        self.softmax_offset = None
        if softmax_type == "learnable":
            self.softmax_offset = torch.nn.Parameter(torch.zeros(num_attention_heads // tp_size))
        self.register_load_state_dict_post_hook(_forgive_missing_state)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object = None, **unused: object
    ) -> torch.Tensor:
        length, batch = query.shape[:2]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [batch, heads, length, channels]
        seen = _seen(length, key.shape[0], self.window_size, query.device)
        if self.softmax_offset is not None:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            scale = self.softmax_scale or q.shape[-1] ** -0.5
            scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, float("-inf"))
            attended = _with_sinks(scores, self.softmax_offset) @ v
            return attended.permute(2, 0, 1, 3).reshape(length, batch, -1)
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=self.softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return attended.permute(2, 0, 1, 3).reshape(length, batch, -1)
