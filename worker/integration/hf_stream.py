"""An HF folder's weights into a live model, whatever its parallelism; no Megatron checkpoint in between."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from ..checkpoints.cast_source import main_dtype
from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.source import Source
from ..engine.convert import items_of, refuse_unequal
from ..engine.plain_weights import CONFIGURED, open_plain
from ..engine.reading import SourceFiles
from ..jobs.errors import BadInputError
from ..mapping.bindings import Model
from ..mapping.blocks import Address, Block, Plan, Task
from ..mapping.hf_config import read_hf_config
from ..mapping.plan import plan_import
from ..mapping.quantization import quantized, without_quantization
from ..mapping.registry import family_of
from .live_tensors import LiveShard, live_shards

_PADDED = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Their first axis is the vocabulary."""


def hf_to_mcore(
    model: Sequence[nn.Module] | nn.Module,
    source: Path | str,
    *,
    pg_collection: ProcessGroupCollection | None = None,
) -> None:
    """Fill this rank's part of the base model from an HF folder: config.json and safetensors, quantized ones too.

    Each rank reads its own rows, one tensor at a time; ranks do not wait for each other. The weights are those of an
    import that Megatron loads; where the model's dtype is another, they are rounded to it. Rows that pad the
    vocabulary become zeros; adapters and value heads stay as they are. BadInputError on a source that is not
    understood, or is of another model than the live one.
    """
    plan, weights = _planned(Path(source))
    refuse_unequal(plan.must_be_equal, weights)
    tasks = {task.target: task for task in plan.tasks}
    names = {address.name for address in tasks}
    files = SourceFiles()
    with closing(files), torch.no_grad():
        for shard in live_shards(model, names, pg_collection):
            shard.data.copy_(_read(_task_of(shard, tasks), shard, weights, files))


def _planned(folder: Path) -> tuple[Plan, Source]:
    config, _ = read_hf_config(folder)
    weights = open_plain(config, folder)
    if quantized(config) is not None:
        config = without_quantization(config, CONFIGURED[main_dtype(weights)])
    family = family_of(config)
    return plan_import(Model(family=family, hf=config, mcore=family.to_mcore(config)), weights.tensors), weights


def _task_of(shard: LiveShard, tasks: Mapping[Address, Task]) -> Task:
    place = shard.place
    task = tasks.get(place.address)
    if task is None:
        raise _other_model(shard, "no such tensor in the HF model", "one that it has")
    padded = place.address.name in _PADDED and place.shape[1:] == task.shape[1:] and place.shape[0] > task.shape[0]
    if place.shape != task.shape and not padded:
        raise _other_model(shard, f"shape {list(place.shape)}", f"{list(task.shape)}, the HF model's")
    return task


def _read(task: Task, shard: LiveShard, weights: Source, files: SourceFiles) -> Tensor:
    """What the shard's place holds: rows that the task lacks are padding."""
    place = shard.place
    first, rows = place.offset[0], place.size[0]
    there = max(0, min(rows, task.shape[0] - first))
    found = _rows(task, first, there, weights, files) if there else torch.empty(0, *task.shape[1:])
    for axis, (offset, size) in enumerate(zip(place.offset[1:], place.size[1:], strict=True), 1):
        found = found.narrow(axis, offset, size)
    if there == rows:
        return found
    return torch.cat([found, found.new_zeros(rows - there, *place.size[1:])])


def _rows(task: Task, first: int, rows: int, weights: Source, files: SourceFiles) -> Tensor:
    """Rows of what the task makes, in its dtype."""
    if task.permutation is not None:
        return _made(task, weights, files).narrow(0, first, rows)
    blocks = tuple(_overlap(task.blocks, first, rows))
    return _made(replace(task, blocks=blocks, shape=(rows, *task.shape[1:])), weights, files)


def _made(task: Task, weights: Source, files: SourceFiles) -> Tensor:
    [item] = items_of(Plan(tasks=(task,)), weights)
    dtype: torch.dtype = getattr(torch, BY_SAFETENSORS[task.dtype].torch)
    parts = [torch.from_numpy(files.whole(extent)).view(dtype) for extent in item.extents]  # pyright: ignore[reportUnknownMemberType]  # torch's stub
    return torch.cat(parts).view(task.shape)


def _overlap(blocks: tuple[Block, ...], first: int, rows: int) -> Iterator[Block]:
    """What of the blocks, laid one after the other, lies in these rows."""
    position = 0
    for block in blocks:
        start, end = max(first, position), min(first + rows, position + block.rows)
        if start < end:
            yield Block(block.source, block.start + start - position, end - start)
        position += block.rows


def _other_model(shard: LiveShard, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_tensor",
        f"live tensor '{shard.place.address}'",
        found=found,
        expected=expected,
        next_step="Build the model from the config of the HF folder that it is filled from.",
    )
