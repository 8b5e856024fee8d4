"""Group-limited routing as DeepSeek's models do it, whatever number of a group's scores they sum."""

from typing import Any, Protocol, cast

import torch
from megatron.core.transformer.moe.router import TopKRouter


class TopK(Protocol):
    """Chooses `topk` experts for each token: their scores and indices, both [tokens, topk]."""

    def __call__(
        self, scores: torch.Tensor, topk: int, num_groups: int | None = None, group_topk: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class GroupChoice:
    """Stands where a router keeps its replay: upstream calls it in place of its own choice.

    Megatron judges a group by its best `topk // group_topk` scores, DeepSeek-V2 by the best one, V3 by the best two.
    A trainer's recording and replaying of routes goes on behind it.
    """

    def __init__(self, scores_summed: int, replay: Any) -> None:
        self._scores_summed, self._replay = scores_summed, replay
        self.layer_number: int | None = None

    def get_replay_topk(
        self, scores: torch.Tensor, topk: int, num_groups: int | None, group_topk: int | None, default: TopK
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Upstream's contract, with our choice for `default`."""
        if self._replay is None:
            return self.choose(scores, topk, num_groups, group_topk)
        return self._replay.get_replay_topk(scores, topk, num_groups, group_topk, self.choose)

    def choose(
        self, scores: torch.Tensor, topk: int, num_groups: int | None = None, group_topk: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `topk` best experts of the `group_topk` best groups. `scores` [tokens, experts]."""
        assert num_groups is not None
        assert group_topk is not None
        grouped: Any = cast(Any, scores).unflatten(-1, (num_groups, -1))  # [tokens, groups, experts of a group]
        judged: Any = grouped.topk(self._scores_summed, dim=-1).values.sum(dim=-1)
        chosen = judged.topk(group_topk, dim=-1, sorted=False).indices
        outside: Any = torch.ones_like(judged, dtype=torch.bool).scatter(-1, chosen, False)
        allowed: Any = grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)
        best = allowed.topk(topk, dim=-1)
        return best.values, best.indices


def judge_groups(model: torch.nn.Module, scores_summed: int) -> None:
    """Let every router of a stage choose its groups so."""
    for module in model.modules():
        if isinstance(module, TopKRouter):
            router: Any = module
            router.router_replay = GroupChoice(scores_summed, router.router_replay)
