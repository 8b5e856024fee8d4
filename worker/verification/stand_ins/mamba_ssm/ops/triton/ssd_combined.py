"""The selective scan of Mamba-2, one step after the other (Dao and Gu 2024, equation 1)."""

import torch
from torch.nn import functional


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    return_final_states: bool = False,
    initial_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [batch, length, heads, channels], dt [.., heads], A [heads], B and C [.., groups, state] -> like x."""
    if z is not None or return_final_states or initial_states is not None:
        raise NotImplementedError
    steps = dt.float() if dt_bias is None else dt.float() + dt_bias
    steps = functional.softplus(steps) if dt_softplus else steps
    of_heads = x.shape[2] // B.shape[2]
    B, C = (matrix.float().repeat_interleave(of_heads, dim=2) for matrix in (B, C))
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1], dtype=torch.float32)
    outputs: list[torch.Tensor] = []
    for at in range(x.shape[1]):
        step = steps[:, at, :, None, None]
        driven = step * x[:, at].float().unsqueeze(-1) * B[:, at].unsqueeze(-2)
        state = torch.exp(step * A.float()[:, None, None]) * state + driven
        outputs.append((state * C[:, at].unsqueeze(-2)).sum(-1))
    y = torch.stack(outputs, dim=1)
    return (y if D is None else y + x.float() * D.float()[:, None]).to(x.dtype)


def mamba_split_conv1d_scan_combined(*unused: object, **options: object) -> torch.Tensor:
    """The fused path, which is switched off where it has no kernel."""
    raise NotImplementedError
