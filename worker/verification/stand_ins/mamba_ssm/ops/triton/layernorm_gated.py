"""A norm over groups of channels, gated before it."""

import torch
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    """Parameter `weight`. `group_size` channels share a statistic."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm_before_gate:
            raise NotImplementedError
        self.eps, self.group_size = eps, group_size or hidden_size
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        gated = x.float() if z is None else x.float() * functional.silu(z.float())
        grouped = gated.unflatten(-1, (-1, self.group_size))
        normed = functional.rms_norm(grouped, (self.group_size,), None, self.eps).flatten(-2)
        return (normed * self.weight.float()).to(x.dtype)
