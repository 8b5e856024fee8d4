"""Adapters of grouped experts: one pair of factors for each expert of this rank, stacked."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from functools import partial
from typing import Any, cast, override

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn
from torch.nn import functional

from .base_linear import BaseLinear
from .low_rank import OUTPUTS, Factor, FactorShape, Offsets, cut, drawn, dropouts, factor_shapes, gathered_rows, mark
from .peft import InitMethod, Peft


class ExpertLowRank(nn.Module):
    """For each expert B(A(x)) * alpha / rank. A [experts, rank, inputs], B [experts, outputs, rank], cut as `LowRank`.

    Experts exchange tokens outside: every expert-tensor rank sees the same tokens, and their outputs are summed later.
    A checkpoint holds the same tensors as that of experts that are modules of their own.
    """

    def __init__(self, base: BaseLinear, peft: Peft, rank: int, like: Tensor, *, gated: bool = False) -> None:
        super().__init__()
        assert base.expert_group is not None
        self.base, self.scale, self.gated = base, peft.alpha / rank, gated
        shape_in, shape_out = factor_shapes(base, rank)
        self.linear_in = Factor(self._drawn(shape_in, peft.lora_A_init_method, peft, like))
        self.linear_out = Factor(self._drawn(shape_out, peft.lora_B_init_method, peft, like))
        self.axis_in, self.axis_out = shape_in.axis or 0, shape_out.axis or 0
        mark(self.linear_in.weight, base, 1 + self.axis_in)
        mark(self.linear_out.weight, base, 1 + self.axis_out)
        self.before, self.after = dropouts(peft)

    @override
    def forward(self, x: Tensor, tokens: Sequence[int] | Tensor) -> Tensor:
        """`x` [tokens, inputs] in the order of experts, of which each has so many of `tokens`."""
        counts = [int(count) for count in tokens]
        group, base = self.base.group, self.base
        x = self.before(x.to(self.linear_in.weight.dtype))
        inner = _each(x, counts, self.linear_in())
        if base.kind == "column":
            inner = gather_from_tensor_model_parallel_region(inner, group=group)
        else:
            inner = reduce_from_tensor_model_parallel_region(inner, group=group)
        inner = copy_to_tensor_model_parallel_region(inner, group=group) * self.scale
        y = _each(inner, counts, self.linear_out())
        if base.kind == "row":  # each rank adds its own columns to a sum that the caller makes
            y = functional.pad(y, (base.rank * y.shape[-1], (base.ranks - 1 - base.rank) * y.shape[-1]))
        return self.after(y)

    def deltas(self) -> list[Tensor]:
        """Each expert's B A alpha / rank, in fp32, cut as its base weight."""
        pairs = zip(self.linear_in.weight.detach().float(), self.linear_out.weight.detach().float(), strict=True)
        if self.base.kind == "column":
            return [self.scale * (b @ gathered_rows(a, self.base)) for a, b in pairs]
        return [self.scale * (gathered_rows(b, self.base) @ a) for a, b in pairs]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Both factors as parts of global tensors [layers.., experts, rank, inputs] and [.., outputs, rank]."""
        return {
            name: self._sharded(factor.weight, name, axis, sharded_offsets, halves)
            for name, factor, axis, halves in (
                (f"{prefix}linear_in.weight", self.linear_in, self.axis_in, 1),
                (f"{prefix}linear_out.weight", self.linear_out, self.axis_out, 2 if self.gated else 1),
            )
        }

    def _sharded(self, weight: Tensor, name: str, axis: int, offsets: Offsets, halves: int) -> ShardedTensorFactory:
        replica = (0, 0, self.base.data_group.rank())
        build = partial(self._shards, axis=axis, offsets=offsets, halves=halves)
        merge = partial(_joined, axis=1 + axis, halves=halves)
        return ShardedTensorFactory(name, weight, cast(Any, build), cast(Any, merge), replica)

    def _shards(
        self,
        key: str,
        weight: Tensor,
        replica_id: tuple[int, ...],
        flattened_range: object,
        *,
        axis: int,
        offsets: Offsets,
        halves: int,
    ) -> list[ShardedTensor]:
        """A shard for each expert; with `halves` two, of gate and up projection."""
        base, lead = self.base, len(offsets)
        assert base.expert_group is not None
        first, experts = base.expert_group.rank() * base.experts, base.expert_group.size() * base.experts
        return [
            ShardedTensor.from_rank_offsets(
                key,
                piece,
                *offsets,
                (lead, first + number, experts),
                (lead + 1 + axis, half * base.ranks + base.rank, halves * base.ranks),
                replica_id=replica_id,
                prepend_axis_num=lead + 1,
            )
            for number, of_expert in enumerate(weight.detach())
            for half, piece in enumerate(of_expert.chunk(halves, axis))
        ]

    def _drawn(self, factor: FactorShape, method: InitMethod, peft: Peft, like: Tensor) -> Tensor:
        base = self.base
        assert base.expert_group is not None
        first = base.expert_group.rank() * base.experts
        wholes = (
            drawn(factor.shape, method, f"{expert_name(base.name, first + number)} {factor.name}", peft.seed)
            for number in range(base.experts)
        )
        parts = [cut(whole, factor, base, halves=self.gated and factor.name == OUTPUTS) for whole in wholes]
        return torch.stack(parts).to(device=like.device, dtype=peft.lora_dtype or like.dtype)


def expert_name(name: str, expert: int) -> str:
    """What a grouped layer's expert is called where it is a module of its own."""
    head, _, tail = name.rpartition(".experts.")
    return f"{head}.experts.local_experts.{expert}.{tail}"


def _each(x: Tensor, counts: list[int], weights: Tensor) -> Tensor:
    """Each expert's rows by its weight [outputs, inputs]."""
    rows = zip(x.split(counts), weights, strict=True)
    return torch.cat([functional.linear(part, weight) for part, weight in rows])


def _joined(parts: list[Tensor], *, axis: int, halves: int) -> Tensor:
    """The stack again, of what `_shards` cut it into."""
    experts = [torch.cat(parts[start : start + halves], axis - 1) for start in range(0, len(parts), halves)]
    return torch.stack(experts)
