"""A live model's weights as parts of the global tensors that a checkpoint would hold."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from ..jobs.errors import InternalError
from ..mapping.blocks import Address
from .adapting import is_adapter_key
from .checkpoint_names import content_among, saved_name
from .chunks import chunks_of, stage_of
from .model_checkpoint import asking, generate_model_state_dict
from .value_model import is_value_head


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a shard lies: in which tensor, or slice of a stack of `stack`, of `shape`, from `offset`, of `size`."""

    address: Address
    stack: tuple[int, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    dtype: str
    """torch's."""


@dataclass(frozen=True, slots=True)
class LiveShard:
    """What this rank holds of a tensor: `data` is the model's own memory."""

    place: Place
    data: Tensor


def live_shards(
    model: Sequence[nn.Module] | nn.Module, names: Collection[str], pg_collection: ProcessGroupCollection | None = None
) -> Iterator[LiveShard]:
    """Every weight of the base model on this rank, under that of `names` which it has in a checkpoint.

    Adapters and value heads, which no HF model has, are left out.
    """
    asked = asking(content_among(names), pg_collection)
    sections = generate_model_state_dict(model, asked, pg_collection=pg_collection)
    stages = map(stage_of, chunks_of(model))  # DDP has other things named `buffers`
    for chunk, section in zip(stages, sections.values(), strict=True):
        memory = {tensor.untyped_storage().data_ptr() for tensor in (*chunk.parameters(), *chunk.buffers())}
        base = {k: v for k, v in section.items() if not (is_adapter_key(k) or is_value_head(chunk, k))}
        apply_factories(base)
        for shard in nested_values(base):
            if isinstance(shard, ShardedTensor):
                yield _live(shard, names, memory)


def _live(shard: ShardedTensor, names: Collection[str], memory: Collection[int]) -> LiveShard:
    lead, data = shard.prepend_axis_num, cast(Tensor, shard.data).detach()
    name = saved_name(shard.key, names)
    if data.numel() and data.untyped_storage().data_ptr() not in memory:
        raise InternalError(
            "internal",
            f"live tensor {name!r}",
            found="a copy in the model's sharded_state_dict",
            expected="the model's own memory",
            next_step="Report this with the model's class.",
        )
    place = Place(
        address=Address(name, tuple(shard.global_offset[:lead])),
        stack=tuple(shard.global_shape[:lead]),
        shape=tuple(shard.global_shape[lead:]),
        offset=tuple(shard.global_offset[lead:]),
        size=tuple(shard.local_shape),
        dtype=str(data.dtype).removeprefix("torch."),
    )
    return LiveShard(place, data)
