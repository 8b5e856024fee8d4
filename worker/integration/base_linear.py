"""What an adapter must know of the layer that it stands beside: its sizes, how it is cut, and who communicates."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

Kind = Literal["column", "row", "whole"]
Group = torch.distributed.ProcessGroup

_KINDS: dict[str, Kind] = {
    "TopKRouter": "whole",
    "TELayerNormColumnParallelLinear": "column",
    "TEColumnParallelLinear": "column",
    "TEColumnParallelGroupedLinear": "column",
    "ColumnParallelLinear": "column",
    "TERowParallelLinear": "row",
    "TERowParallelGroupedLinear": "row",
    "RowParallelLinear": "row",
    "TELinear": "whole",
}
"""By class name, the most derived first: Transformer Engine's classes exist only where it is installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLinear:
    """A base layer as an adapter sees it."""

    name: str
    """Its full name in its model chunk."""
    kind: Kind
    """Which side of the weight tensor-parallel ranks cut: its outputs, its inputs, or neither."""
    in_features: int
    """Over all ranks."""
    out_features: int
    """Over all ranks."""
    group: Group
    """The ranks that it is cut over; for an expert, those of expert-tensor parallelism."""
    data_group: Group
    """The ranks that hold the same shard."""
    experts: int
    """How many experts of this rank one module computes; 0 where it is not grouped."""
    is_expert: bool
    sequence_parallel: bool
    """Its input (column) or output (row) is cut along the sequence."""
    summed_outside: bool
    """The caller gathers its inputs and sums its outputs: experts, and shared experts that overlap."""
    gathers_output: bool
    expert_group: Group | None
    """Expert-parallel ranks; None outside of experts."""
    reduced_with_experts: bool
    """Its gradients are reduced over expert-data-parallel ranks alone."""

    @property
    def ranks(self) -> int:
        """Ranks that share it."""
        return 1 if self.kind == "whole" else self.group.size()

    @property
    def rank(self) -> int:
        """This rank's place among them."""
        return 0 if self.kind == "whole" else self.group.rank()

    def share(self, features: int, what: str) -> int:
        """This rank's share of so many. ValueError where the ranks cannot share them evenly."""
        if features % self.ranks:
            raise ValueError(
                f"adapter of {self.name}: found {what} {features}, expected a multiple of the {self.ranks} ranks that "
                "share it. Choose another rank, or another parallelism."
            )
        return features // self.ranks


def kind_of(module: torch.nn.Module) -> Kind | None:
    """How its class is cut; None for a class that no adapter knows."""
    return next((_KINDS[base.__name__] for base in type(module).__mro__ if base.__name__ in _KINDS), None)


def is_expert_name(name: str) -> bool:
    """The layer belongs to a routed expert."""
    return ".experts." in f".{name}" and ".shared_experts." not in f".{name}"


def describe(module: Any, name: str, groups: ProcessGroupCollection) -> BaseLinear:
    """The layer of this full name. ValueError on a class that adapters do not support, with those that they do."""
    kind = kind_of(module)
    if kind is None:
        raise ValueError(
            f"adapter of {name}: found a {type(module).__name__}, expected one of {', '.join(_KINDS)}. "
            "Leave it out of target_modules."
        )
    config, expert = module.config, is_expert_name(name)
    group = groups.expt_tp if expert else groups.tp
    rows, columns = _weight(module).shape
    return BaseLinear(
        name=name,
        kind=kind,
        in_features=columns * (group.size() if kind == "row" else 1),
        out_features=rows * (group.size() if kind == "column" else 1),
        group=group,
        data_group=groups.expt_dp if expert else groups.dp_cp,
        experts=getattr(module, "num_gemms", 0),
        is_expert=expert,
        sequence_parallel=bool(config.sequence_parallel) and not expert and groups.tp.size() > 1,
        summed_outside=expert or (kind != "whole" and _communicates_outside(module)),
        gathers_output=bool(getattr(module, "gather_output", False)),
        expert_group=groups.ep if expert else None,
        reduced_with_experts=expert and (groups.ep.size() > 1 or groups.expt_tp.size() != groups.tp.size()),
    )


def _communicates_outside(module: Any) -> bool:
    """Upstream's overlapped shared experts say so: `parallel_mode` None, or `explicit_expert_comm`."""
    return getattr(module, "parallel_mode", "") is None or bool(getattr(module, "explicit_expert_comm", False))


def _weight(module: Any) -> torch.Tensor:
    return module.weight0 if getattr(module, "num_gemms", 0) else module.weight
