"""A language model made to judge: one value for each token in place of the logits."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Any, override

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn import functional

from .chunks import stage_of
from .low_rank import Offsets


class ValueHead(nn.Module):
    """Stands where the output layer did: `weight` [1, hidden] and `bias` [1], whole on every rank."""

    def __init__(
        self, hidden_size: int, like: Tensor, sequence_parallel: bool, group: torch.distributed.ProcessGroup
    ) -> None:
        super().__init__()
        self.sequence_parallel, self.group = sequence_parallel, group
        self.weight = nn.Parameter(torch.empty(1, hidden_size, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))
        generator = torch.Generator().manual_seed(0)
        self.weight.data.copy_(torch.randn(1, hidden_size, generator=generator) * 0.02)
        for parameter in (self.weight, self.bias):
            setattr(parameter, "sequence_parallel", sequence_parallel)  # noqa: B010  # Megatron sums their gradients

    @override
    def forward(self, x: Tensor, *unused: Any, **options: Any) -> tuple[Tensor, None]:
        """[length, batch, hidden] -> ([length, batch, 1] in fp32, no bias to add): an output layer's answer."""
        values = functional.linear(x, self.weight, self.bias).float()
        if self.sequence_parallel:
            values = gather_from_sequence_parallel_region(values, tensor_parallel_output_grad=False, group=self.group)
        return values, None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Under the output layer's name."""
        state = self.state_dict(prefix="", keep_vars=True)
        group = ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"]
        return make_sharded_tensors_for_checkpoint(
            state, prefix, {}, sharded_offsets, tp_group=self.group, dp_cp_group=group
        )


def make_value_model(model: Sequence[nn.Module]) -> list[nn.Module]:
    """A pre-wrap hook: on the last stage the output layer gives way to a head of one value a token, which trains.

    The model then answers values [batch, length, 1] in fp32. The embedding keeps its weight where it was tied.
    After Megatron-Bridge's and verl's helper of this name.
    """
    for chunk in model:
        stage: Any = stage_of(chunk)
        stage.share_embeddings_and_output_weights = False  # on every stage: their gradients are no longer summed
        if not stage.post_process:
            continue
        like = next(stage.decoder.parameters())
        tensor_parallel: Any = stage.pg_collection.tp
        cut = bool(stage.config.sequence_parallel) and tensor_parallel.size() > 1
        stage.output_layer = ValueHead(stage.config.hidden_size, like, cut, tensor_parallel)
    return list(model)


def is_value_head(model: nn.Module, key: str) -> bool:
    """The checkpoint key is of the head."""
    head = getattr(stage_of(model), "output_layer", None)
    return isinstance(head, ValueHead) and key.startswith("output_layer.")
