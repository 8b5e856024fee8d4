"""Group-limited routing as DeepSeek's models do it, whatever number of a group's scores they sum."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import nn


@dataclass(frozen=True, slots=True)
class GroupChoice:
    """Chooses experts in the place where Megatron-Core's router asks its replay (`RouterReplay`), under that name.

    Megatron judges a group by its best `topk // group_topk` scores; DeepSeek-V2 by the best one, V3 by the best two.
    """

    scores_summed: int

    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        compute_topk: Callable[..., Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [tokens, experts] -> the chosen experts' scores and numbers [tokens, topk]."""
        if not num_groups or not group_topk:
            return compute_topk(scores, topk, num_groups, group_topk)
        grouped = scores.unflatten(-1, (num_groups, -1))  # [tokens, groups, experts of a group]
        judged = grouped.topk(self.scores_summed, dim=-1).values.sum(dim=-1)
        kept = torch.zeros_like(judged, dtype=torch.bool).scatter(1, judged.topk(group_topk, dim=-1).indices, True)
        allowed = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)
        return cast("tuple[torch.Tensor, torch.Tensor]", torch.topk(allowed, k=topk, dim=-1))


def judge_groups(model: nn.Module, scores_summed: int) -> None:
    """Let every router of a stage choose its groups so."""
    for module in cast("list[nn.Module]", list(model.modules())):
        if isinstance(module, TopKRouter):
            if module.config.moe_router_fusion or module.config.moe_enable_routing_replay:
                raise ValueError("group_scores_summed needs moe_router_fusion and moe_enable_routing_replay off")
            router: Any = module
            router.router_replay = GroupChoice(scores_summed)
