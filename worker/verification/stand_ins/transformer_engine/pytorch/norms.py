"""Norms, computed in fp32."""

from typing import Any

import torch
from torch.nn import functional

from .extra_state import ExtraState


def norm_weight(
    size: int, zero_centered: bool, dtype: torch.dtype | None, device: torch.types.Device
) -> torch.nn.Parameter:
    """Ones, or zeros where one is added in the forward pass."""
    return torch.nn.Parameter(torch.full((size,), 0.0 if zero_centered else 1.0, dtype=dtype, device=device))


def root_mean_square_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight."""
    return (functional.rms_norm(x.float(), (x.shape[-1],), None, eps) * weight).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean(x)) / std(x) * weight + bias."""
    return functional.layer_norm(x.float(), (x.shape[-1],), weight, bias.float(), eps).to(x.dtype)


class RMSNorm(ExtraState):
    """Parameter `weight`."""

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        zero_centered_gamma: bool = False,
        params_dtype: torch.dtype | None = None,
        device: torch.types.Device = None,
        **unused: object,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.zero_centered_gamma = zero_centered_gamma
        self.weight = norm_weight(normalized_shape, zero_centered_gamma, params_dtype, device)

    def effective_weight(self) -> torch.Tensor:
        """The factor of the forward pass, in fp32."""
        return self.weight.float() + (1.0 if self.zero_centered_gamma else 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return root_mean_square_norm(x, self.effective_weight(), self.eps)


class LayerNorm(RMSNorm):
    """Parameters `weight` and `bias`."""

    def __init__(self, normalized_shape: int, **options: Any) -> None:
        super().__init__(normalized_shape, **options)
        self.bias = torch.nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self.effective_weight(), self.bias, self.eps)
