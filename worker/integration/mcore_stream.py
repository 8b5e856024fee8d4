"""A live model's weights as HF tensors, one at a time, gathered from the ranks that hold them."""

# torch leaves some of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, distributed, nn

from ..checkpoints.dtypes import BY_TORCH
from ..checkpoints.extents import StoredTensor
from ..jobs.errors import BadInputError
from ..mapping.bindings import Model, bindings
from ..mapping.blocks import Address, Block, Task
from ..mapping.hf_config import HFConfig, read_hf_config
from ..mapping.model_config import to_json_dict
from ..mapping.plan import plan_export
from ..mapping.registry import family_of
from ..mapping.written_config import read_written
from .live_tensors import LiveShard, Place, live_shards
from .load import MODEL_CONFIG, load_model_config

if TYPE_CHECKING:
    from megatron.training.models.gpt import GPTModelConfig

_Group = distributed.ProcessGroup | None


def mcore_to_hf(
    model: Sequence[nn.Module] | nn.Module,
    described: "GPTModelConfig | HFConfig",
    *,
    group: _Group = None,
    pg_collection: ProcessGroupCollection | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(HF name, whole tensor) of the base model, in HF's order, on every rank: bit for bit what an export writes.

    `described` says which model it is: the config that it was built from, the folder of an import, or its HF config.
    `group` are the ranks that hold the model together (default: all); all of them iterate, in step. A tensor is
    gathered when it is its turn and belongs to the caller; what others are made of too waits for them, at most a few
    layers' fused tensors. With adapters, `merged_adapters` folds them in for the time of the stream.
    BadInputError where the live model is not the described one.
    """
    mapped = _model_of(described)
    names = {binding.target.name for binding in bindings(mapped)}
    ranks = _Ranks.of({shard.place: shard for shard in live_shards(model, names, pg_collection)}, group)
    plan = plan_export(mapped, ranks.tensors())
    _refuse_nonzero(plan.must_be_zero, ranks)
    return _stream(plan.tasks, ranks)


@dataclass(slots=True)
class _Ranks:
    """All shards of the model: where each lies, and the rank that gives it out."""

    mine: Mapping[Place, LiveShard]
    owners: Mapping[Address, Mapping[Place, int]]
    group: _Group
    device: torch.device
    _whole: dict[Address, Tensor] = field(default_factory=dict[Address, Tensor])

    @classmethod
    def of(cls, mine: Mapping[Place, LiveShard], group: _Group) -> "_Ranks":
        """Ask every rank what it holds; of equal shards the first rank's counts."""
        everyone: list[list[Place]] = [[] for _ in range(distributed.get_world_size(group))]
        distributed.all_gather_object(everyone, list(mine), group=group)
        owners: dict[Address, dict[Place, int]] = {}
        for rank, places in enumerate(everyone):
            for place in places:
                owners.setdefault(place.address, {}).setdefault(place, rank)
        device = next((shard.data.device for shard in mine.values()), torch.device("cpu"))
        return cls(mine, owners, group, device)

    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of the model, as a checkpoint's index would describe it."""
        found: dict[str, StoredTensor] = {}
        for address, places in self.owners.items():
            place = next(iter(places))
            dtype = BY_TORCH[place.dtype]
            shape = (*place.stack, *place.shape)
            found[address.name] = StoredTensor(dtype=dtype.safetensors, shape=shape, item_bytes=dtype.item_bytes)
        return found

    def whole(self, address: Address) -> Tensor:
        """A tensor, or slice of a stack, put together of its shards; kept until it is dropped."""
        if address not in self._whole:
            self._whole[address] = self._gathered(address)
        return self._whole[address]

    def drop(self, address: Address) -> None:
        """Nothing more is made of it."""
        self._whole.pop(address, None)

    def _gathered(self, address: Address) -> Tensor:
        places = self.owners.get(address, {})
        if not places or sum(prod(place.size) for place in places) != prod(next(iter(places)).shape):
            raise _incomplete(address, len(places))
        first = next(iter(places))
        whole = torch.empty(first.shape, dtype=getattr(torch, first.dtype), device=self.device)
        for place, rank in places.items():
            part = self._shared(place, rank, whole.dtype)
            whole[tuple(slice(start, start + size) for start, size in zip(place.offset, place.size, strict=True))] = (
                part
            )
        return whole

    def _shared(self, place: Place, rank: int, dtype: torch.dtype) -> Tensor:
        """The shard of the rank that owns it, on every rank."""
        held = distributed.get_rank(self.group) == rank
        part = self.mine[place].data.contiguous() if held else torch.empty(place.size, dtype=dtype, device=self.device)
        if distributed.get_world_size(self.group) > 1:
            distributed.broadcast(part, group=self.group, group_src=rank)
        return part


def _stream(tasks: tuple[Task, ...], ranks: _Ranks) -> Iterator[tuple[str, Tensor]]:
    waiting = Counter(block.source for task in tasks for block in task.blocks)
    for name, of_name in groupby(tasks, key=lambda task: task.target.name):
        slices = tuple(of_name)
        made = [_made(task, ranks) for task in slices]
        for source in (block.source for task in slices for block in task.blocks):
            waiting[source] -= 1
            if not waiting[source]:
                ranks.drop(source)
        yield name, torch.stack(made).view(*slices[0].stack, *slices[0].shape) if slices[0].stack else made[0]


def _made(task: Task, ranks: _Ranks) -> Tensor:
    rows = torch.cat([_rows(block, ranks) for block in task.blocks])
    if task.permutation is not None:
        rows = rows.reshape(task.permutation.shape).permute(task.permutation.axes)
    return rows.reshape(task.shape)


def _rows(block: Block, ranks: _Ranks) -> Tensor:
    return ranks.whole(block.source).narrow(0, block.start, block.rows)


def _model_of(described: "GPTModelConfig | HFConfig") -> Model:
    if isinstance(described, str | Path) and (Path(described) / MODEL_CONFIG).exists():
        described = load_model_config(described)
    if hasattr(described, "transformer"):
        family, mcore = read_written(to_json_dict(cast("GPTModelConfig", described)), "the model's config")
        return Model(family=family, hf=family.to_hf(mcore), mcore=mcore)
    hf, _ = read_hf_config(cast(HFConfig, described))
    family = family_of(hf)
    return Model(family=family, hf=hf, mcore=family.to_mcore(hf))


def _refuse_nonzero(blocks: tuple[Block, ...], ranks: _Ranks) -> None:
    for block in blocks:
        if _rows(block, ranks).count_nonzero():
            raise BadInputError(
                "unsupported_config_value",
                f"live tensor '{block.source}'",
                found="values other than zero",
                expected="zeros, since the HF model has no such bias",
                next_step="Freeze biases that the HF model lacks, or describe one that has them.",
            )
        ranks.drop(block.source)


def _incomplete(address: Address, shards: int) -> BadInputError:
    return BadInputError(
        "missing_tensor",
        f"live tensor '{address}'",
        found=f"{shards} shards that do not make a whole",
        expected="every shard once on the group's ranks",
        next_step="Give as `group` all ranks that hold the model together.",
    )
