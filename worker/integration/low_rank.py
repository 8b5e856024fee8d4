"""The two factors of an adapter, cut over ranks as their base layer is; their product is what the adapter adds."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass
from math import sqrt
from typing import Any, assert_never, override
from zlib import crc32

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from torch import Tensor, nn
from torch.nn import functional

from .base_linear import BaseLinear
from .peft import InitMethod, Peft

Offsets = tuple[tuple[int, int, int], ...]
"""Upstream's (axis, this rank's place, number of places)."""
OUTPUTS = "outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorShape:
    """One factor, whole, and the axis along which ranks cut it; None where each holds all of it."""

    name: str
    shape: tuple[int, int]
    axis: int | None


def factor_shapes(base: BaseLinear, rank: int) -> tuple[FactorShape, FactorShape]:
    """A's and B's."""
    axis = None if base.kind == "whole" else 0
    return (
        FactorShape(name="rank", shape=(rank, base.in_features), axis=1 if base.kind == "row" else axis),
        FactorShape(name=OUTPUTS, shape=(base.out_features, rank), axis=axis),
    )


def cut(whole: Tensor, factor: FactorShape, base: BaseLinear, *, halves: bool = False) -> Tensor:
    """This rank's part; with `halves`, of the rows' two halves one after the other: gate and up projection."""
    if factor.axis is None:
        return whole
    pieces = whole.chunk(2, factor.axis) if halves else (whole,)
    size = base.share(pieces[0].shape[factor.axis], factor.name)
    return torch.cat([piece.narrow(factor.axis, base.rank * size, size) for piece in pieces], factor.axis)


class Factor(nn.Module):
    """A weight with a name of its own: `linear_in.weight` (A), `linear_out.weight` (B)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    @override
    def forward(self) -> Tensor:
        """The weight; a call, so that hooks which gather parameters before use see it."""
        return self.weight


class LowRank(nn.Module):
    """B(A(x)) * alpha / rank. A [rank, inputs], B [outputs, rank], cut so that the ranks share the work.

    Beside a column-parallel layer A is cut by rank and B by outputs; beside a row-parallel one A is cut by inputs and
    B by outputs; beside a whole one nothing is. The layout of Megatron-Bridge (`ParallelLinearAdapter`).
    """

    def __init__(self, base: BaseLinear, peft: Peft, rank: int, like: Tensor, *, gated: bool = False) -> None:
        """`like` is the base's weight, whose device and dtype count; `gated`: outputs are gate and up projection."""
        super().__init__()
        self.base, self.scale, self.gated = base, peft.alpha / rank, gated
        shape_in, shape_out = factor_shapes(base, rank)
        self.linear_in = Factor(self._drawn(shape_in, peft.lora_A_init_method, peft, like))
        self.linear_out = Factor(self._drawn(shape_out, peft.lora_B_init_method, peft, like))
        self.axis_in, self.axis_out = shape_in.axis, shape_out.axis
        for factor, axis in ((self.linear_in, self.axis_in), (self.linear_out, self.axis_out)):
            mark(factor.weight, base, axis)
        self.before, self.after = dropouts(peft)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """What the base's output lacks: cut as it is, in the adapter's dtype. `x` is what the base multiplies."""
        inner = functional.linear(self._whole_input(self.before(x.to(self.linear_in.weight.dtype))), self.linear_in())
        return self.after(self._output(functional.linear(self._whole_rank(inner) * self.scale, self.linear_out())))

    def delta(self) -> Tensor:
        """This rank's part of B A alpha / rank, in fp32: [outputs, inputs] as the base's weight is cut."""
        a, b = self.linear_in.weight.detach().float(), self.linear_out.weight.detach().float()
        match self.base.kind:
            case "column":
                a = gathered_rows(a, self.base)
            case "row":
                b = gathered_rows(b, self.base)
            case "whole":
                pass
        return self.scale * (b @ a)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Both factors as parts of global tensors [layers.., rank, inputs] and [layers.., outputs, rank]."""
        name_in, name_out = f"{prefix}linear_in.weight", f"{prefix}linear_out.weight"
        state: dict[str, Any] = {
            name_in: sharded(self.linear_in.weight, name_in, self.base, self.axis_in, sharded_offsets),
            name_out: sharded(self.linear_out.weight, name_out, self.base, self.axis_out, sharded_offsets),
        }
        return {**state, name_out: self.as_gated(state[name_out], sharded_offsets, metadata)}

    def as_gated(self, shard: ShardedTensor, offsets: Offsets, metadata: dict[str, Any] | None) -> Any:
        """Rows of gate and up projection, which a rank holds one after the other, each in its half of the tensor."""
        if not self.gated:
            return shard
        return apply_swiglu_sharded_factory(shard, offsets, bool((metadata or {}).get("singleton_local_shards", False)))

    def _drawn(self, factor: FactorShape, method: InitMethod, peft: Peft, like: Tensor) -> Tensor:
        whole = drawn(factor.shape, method, f"{self.base.name} {factor.name}", peft.seed)
        part = cut(whole, factor, self.base, halves=self.gated and factor.name == OUTPUTS)
        return part.to(device=like.device, dtype=peft.lora_dtype or like.dtype, copy=True).contiguous()

    def _whole_input(self, x: Tensor) -> Tensor:
        base = self.base
        if base.kind != "column" or base.summed_outside:
            return x
        if base.sequence_parallel:
            return gather_from_sequence_parallel_region(x, group=base.group)
        return copy_to_tensor_model_parallel_region(x, group=base.group)

    def _whole_rank(self, inner: Tensor) -> Tensor:
        """All of A's outputs on each rank; each rank's use of them adds to their gradient."""
        group = self.base.group
        match self.base.kind:
            case "column":
                inner = gather_from_tensor_model_parallel_region(inner, group=group)
            case "row":
                inner = reduce_from_tensor_model_parallel_region(inner, group=group)
            case "whole":
                return inner
            case _:
                assert_never(self.base.kind)
        return copy_to_tensor_model_parallel_region(inner, group=group)

    def _output(self, y: Tensor) -> Tensor:
        base = self.base
        if base.kind == "column":
            return gather_from_tensor_model_parallel_region(y, group=base.group) if base.gathers_output else y
        if base.kind == "whole":
            return y
        if base.summed_outside:  # each rank adds its own columns to a sum that the caller makes
            return functional.pad(y, (base.rank * y.shape[-1], (base.ranks - 1 - base.rank) * y.shape[-1]))
        y = gather_from_tensor_model_parallel_region(y, group=base.group)
        return scatter_to_sequence_parallel_region(y, group=base.group) if base.sequence_parallel else y


def dropouts(peft: Peft) -> tuple[nn.Dropout, nn.Dropout]:
    """Before the two factors and after them."""
    before = peft.dropout_position == "pre"
    return nn.Dropout(peft.dropout if before else 0.0), nn.Dropout(0.0 if before else peft.dropout)


def mark(parameter: nn.Parameter, base: BaseLinear, axis: int | None) -> None:
    """Set what Megatron's optimizer and gradient reduction read off a parameter."""
    marked: Any = parameter
    marked.allreduce = not base.reduced_with_experts
    if axis is None:
        marked.sequence_parallel = base.sequence_parallel  # each rank saw other tokens: their gradients are summed
    else:
        set_tensor_model_parallel_attributes(parameter, True, axis, 1)


def drawn(shape: tuple[int, int], method: InitMethod, name: str, seed: int) -> Tensor:
    """A whole factor in fp32, the same for the same name and seed."""
    rows, columns = shape
    generator = torch.Generator().manual_seed(seed + crc32(name.encode()))
    match method:
        case "zero":
            return torch.zeros(shape)
        case "xavier":
            return torch.randn(shape, generator=generator) * sqrt(2 / (rows + columns))
        case "normal":
            return torch.randn(shape, generator=generator) * 0.2
        case "kaiming":
            return (2 * torch.rand(shape, generator=generator) - 1) / sqrt(columns)
        case _:
            assert_never(method)


def gathered_rows(part: Tensor, base: BaseLinear) -> Tensor:
    """The rows of all ranks of the base's group, one after the other; without gradient."""
    if base.ranks == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(base.ranks)]
    torch.distributed.all_gather(parts, part.contiguous(), group=base.group)
    return torch.cat(parts)


def sharded(weight: Tensor, key: str, base: BaseLinear, axis: int | None, offsets: Offsets) -> ShardedTensor:
    """A parameter as part of a global tensor, cut along `axis`; `offsets` say which slice of which stack it is."""
    lead = len(offsets)
    place = () if axis is None else ((lead + axis, base.rank, base.ranks),)
    replica = (0, base.group.rank() if axis is None else 0, base.data_group.rank())
    return ShardedTensor.from_rank_offsets(key, weight, *offsets, *place, replica_id=replica, prepend_axis_num=lead)
