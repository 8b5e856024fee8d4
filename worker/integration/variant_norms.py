"""Norms that Megatron-Core lacks: zero-centred without Transformer Engine, over all heads at once, after a layer."""

# Megatron-Core leaves half of its functions without types, and torch some: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from functools import cache
from typing import Any, override

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch.nn import functional

Group = torch.distributed.ProcessGroup


class ZeroCenteredRMSNorm(torch.nn.RMSNorm):
    """x / rms(x) * (1 + weight), in fp32. Built as Megatron builds its norms."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps)
        # Megatron sums the gradients of weights that bear this mark over tensor-parallel ranks.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    @override
    def reset_parameters(self) -> None:
        """The neutral weight is 0."""
        torch.nn.init.zeros_(self.weight)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = functional.rms_norm(x.float(), self.normalized_shape, None, self.eps)
        return (normed * (1.0 + self.weight.float())).to(x.dtype)


class AllHeadsRMSNorm(MegatronModule):
    """x / rms(x) * weight over all heads of a token, those of the other tensor-parallel ranks included.

    The weight is cut by heads, as the rows of the projection are. Like every norm of Transformer Engine it keeps an
    `_extra_state`, so that a checkpoint's keys do not depend on what a norm spans.
    """

    def __init__(self, config: TransformerConfig, heads: int, tp_group: Group) -> None:
        super().__init__(config)
        self.tp_group = tp_group
        self.size = heads * _head_size(config)
        local = self.size // tp_group.size()
        self.weight = torch.nn.Parameter(torch.ones(local, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[length, batch, heads of this rank, channels], normed."""
        flat = x.float().flatten(-2)
        squares = self._over_all_ranks(flat.square().sum(-1, keepdim=True))
        normed = flat * torch.rsqrt(squares / self.size + self.config.layernorm_epsilon)
        return (normed.to(x.dtype) * self.weight).view_as(x)

    def _over_all_ranks(self, squares: torch.Tensor) -> torch.Tensor:
        """Their sum; its gradient is summed too, since every rank's output depends on it."""
        summed = reduce_from_tensor_model_parallel_region(squares, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(summed, group=self.tp_group)

    @override
    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The weight, cut along its one axis."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )

    @override
    def get_extra_state(self) -> None:
        """None: nothing is quantized here."""

    @override
    def set_extra_state(self, state: object) -> None:
        """Nothing to restore."""


@cache
def followed_by_norm(linear: type[Any], norm: Any) -> type[Any]:
    """A row-parallel layer of the backend, `linear`, whose output, its bias included, goes through `norm`."""

    class NormedRowParallelLinear(linear):
        """The backend's layer with `post_layernorm`; both layers of a model that end in the residual stream."""

        def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **options: Any) -> None:
            super().__init__(input_size, output_size, config=config, **options)
            self.post_layernorm = norm(config=config, hidden_size=output_size, eps=config.layernorm_epsilon)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.normed(*self.projected(x))

        def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            """The backend's output and bias: an adapter adds to them."""
            return super().forward(x)

        def normed(self, output: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, None]:
            """What comes of them."""
            return self.post_layernorm(output if bias is None else output + bias), None

    return NormedRowParallelLinear


def _head_size(config: TransformerConfig) -> int:
    assert config.kv_channels is not None  # upstream's constructor fills it in
    return config.kv_channels
