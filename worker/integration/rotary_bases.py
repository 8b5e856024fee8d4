"""Two rope bases in one model: the layers with a window have their own, without any scaling."""

from copy import copy
from typing import Any, cast, override

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding


class TwoRotaryEmbeddings(torch.nn.Module):
    """Upstream's embedding for full layers and one of base `local_base` for windowed layers, side by side.

    It takes upstream's place in a model; each layer picks its own (`VariantSelfAttention`).
    """

    def __init__(self, full: RotaryEmbedding, local_base: float) -> None:
        super().__init__()
        self.full, self.local = full, _with_base(full, local_base)

    @override
    def forward(self, max_seq_len: int, **options: Any) -> torch.Tensor:
        """[full and windowed layers', length, 1, 1, channels]."""
        return torch.stack([self.full(max_seq_len, **options), self.local(max_seq_len, **options)])

    def get_rotary_seq_len(self, *args: Any, **options: Any) -> int:
        """Upstream's."""
        return self.full.get_rotary_seq_len(*args, **options)

    def get_cos_sin(self, max_seq_len: int, offset: int = 0) -> None:
        """Upstream's tables for flash decoding hold one base."""
        raise NotImplementedError("flash decoding with two rope bases: generate without flash_decode")


def _with_base(full: RotaryEmbedding, base: float) -> RotaryEmbedding:
    """A copy of `full` that rotates as many channels with another base, at its unscaled positions."""
    local: Any = copy(full)
    local.seq_len_interpolation_factor = None
    channels = 2 * full.inv_freq.numel()
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=full.inv_freq.device) / channels
    local.inv_freq = 1.0 / base**exponents
    return cast(RotaryEmbedding, local)
