"""A convolution over time that sees no later step."""

import torch
from torch.nn import functional


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """x [batch, length, channels], weight [channels, width] -> like x, and no state."""
    padded = functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    y = functional.conv1d(padded, weight.unsqueeze(1), bias, groups=weight.shape[0]).transpose(1, 2)
    return (functional.silu(y) if activation in ("silu", "swish") else y), None
