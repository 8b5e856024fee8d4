"""The gated delta rule, one step after the other (Yang, Kautz and Hatamizadeh 2024, equation 10)."""

import torch


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """q and k [batch, length, heads, key], v [.., value], g and beta [batch, length, heads] -> like v."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=torch.float32)
    outputs: list[torch.Tensor] = []
    for at in range(q.shape[1]):
        key, value = k[:, at].float(), v[:, at].float()
        state = state * g[:, at].float().exp()[..., None, None]
        known = torch.einsum("bhk,bhkv->bhv", key, state)
        learned = (value - known) * beta[:, at].float().unsqueeze(-1)
        state = state + torch.einsum("bhk,bhv->bhkv", key, learned)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, at].float() * scale, state))
    return torch.stack(outputs, dim=1).to(v.dtype), None
