"""A mapping plan carried out: blocks resolved to bytes of the source, files made and filled."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.extents import Extent, Item, Permuted, TargetFile, Zeros
from ..checkpoints.source import Source
from ..jobs.errors import BadInputError
from ..mapping.blocks import Block, Plan, Task
from .computed import merged
from .copy import Segment
from .digests import FileDigest, digest_of, file_digest, tensor_digests
from .part_queue import ListedParts, Segments
from .parts import Part, cut_parts, part_bytes_for
from .processes import CopyOptions, Digest, do_parts
from .reading import read_extent, same_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written, file by file and tensor by tensor."""

    files: Mapping[str, FileDigest]
    tensors: Mapping[str, str]
    copy_seconds: float
    """From the first file's creation to the last sync."""


def items_of(plan: Plan, source: Source) -> tuple[Item, ...]:
    """The plan's tasks with their bytes located. Reads item headers of the source, no tensor data."""
    return tuple(
        Item(
            name=task.target.name,
            index=task.target.index,
            stack=task.stack,
            dtype=task.dtype,
            shape=task.shape,
            extents=_extents(task, source),
        )
        for task in plan.tasks
    )


def total_bytes(files: Iterable[TargetFile]) -> int:
    """All bytes of the files, framing included."""
    return sum(file.size for file in files)


def written(parts: tuple[Part, ...], finished: Mapping[int, Segments], seconds: float) -> Written:
    """What all parts come to, whoever wrote them."""
    segments = _by_file(parts, finished)
    return Written(
        files={path: file_digest(of_file) for path, of_file in segments.items()},
        tensors=tensor_digests(segments),
        copy_seconds=seconds,
    )


def read_segments(
    files: tuple[TargetFile, ...], options: CopyOptions, report: Callable[[int], None], *, segment_bytes: int
) -> dict[str, tuple[Segment, ...]]:
    """The digests of all spans, by file, in order; nothing is written. Spans longer than `segment_bytes` are cut."""
    parts = cut_parts(files, part_bytes_for(total_bytes(files)), segment_bytes)
    queue = ListedParts(range(len(parts)))
    do_parts(parts, queue, Digest(), options, report)
    return _by_file(parts, queue.finished)


def read_again(
    parts: tuple[Part, ...], options: CopyOptions, report: Callable[[int], None]
) -> Mapping[str, FileDigest]:
    """What the parts would come to if they were written now."""
    queue = ListedParts(range(len(parts)))
    do_parts(parts, queue, Digest(), options, report)
    return {path: file_digest(of_file) for path, of_file in _by_file(parts, queue.finished).items()}


def _by_file(parts: tuple[Part, ...], done: Mapping[int, Segments]) -> dict[str, Segments]:
    segments: defaultdict[str, list[Segment]] = defaultdict(list)
    for number, part in enumerate(parts):
        segments[part.file] += done[number]
    return {file: tuple(sorted(found, key=lambda segment: segment.offset)) for file, found in segments.items()}


def refuse_nonzero(blocks: Iterable[Block], source: Source) -> None:
    """BadInputError where rows that have no place in the target hold anything but zeros."""
    for block in blocks:
        extents = source.rows(block.source.name, block.source.index, block.start, block.rows)
        if any(read_extent(extent).strip(b"\0") for extent in extents):
            raise BadInputError(
                "unsupported_config_value",
                f"Megatron tensor '{block.source}'",
                found="values other than zero",
                expected="zeros, since the HF config has no such bias",
                next_step="Export with --hf-config naming a config whose attention_bias and mlp_bias are true.",
            )


def refuse_unequal(pairs: Iterable[tuple[str, str]], source: Source) -> None:
    """BadInputError where a tensor that is left out as a copy differs from what it is a copy of."""
    for name, of in pairs:
        extents = [source.whole(tensor) for tensor in (name, of)]
        kinds = [(source.tensors[tensor].dtype, source.tensors[tensor].shape) for tensor in (name, of)]
        if kinds[0] != kinds[1] or not same_bytes(*extents):
            raise BadInputError(
                "bad_tensor",
                f"HF tensor {name!r}",
                found=f"other values than {of!r}",
                expected="a copy of it: Megatron-Core has one tensor for both",
                next_step="This checkpoint cannot be expressed; share the tensor in the HF model first.",
            )


def plan_digest(plan: Plan, files: Iterable[TargetFile]) -> str:
    """One digest of what goes where; independent of paths and of the number of processes."""
    text = "\n".join([*map(repr, plan.tasks), *(f"{file.path} {file.size}" for file in files)])
    return digest_of(text.encode())


def _extents(task: Task, source: Source) -> tuple[Extent, ...]:
    item_bytes = BY_SAFETENSORS[task.dtype].item_bytes
    if not task.blocks:
        return (Zeros(prod(task.shape) * item_bytes),)
    extents = tuple(
        extent
        for block in task.blocks
        for extent in source.rows(block.source.name, block.source.index, block.start, block.rows)
    )
    if task.padding_rows:
        return (*extents, Zeros(task.padding_rows * prod(task.shape[1:]) * item_bytes))
    if task.permutation is None:
        return extents
    return (merged(Permuted(extents, task.permutation.shape, task.permutation.axes, item_bytes)),)
