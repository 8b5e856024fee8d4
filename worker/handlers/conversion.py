"""What import and export share: a planned conversion, its dry-run view, its execution and its manifest."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from .. import __version__
from ..checkpoints.extents import Item, TargetFile, is_computed
from ..checkpoints.identity import FileIdentity, refuse_changed, set_back
from ..checkpoints.manifest import write_manifest, write_synced
from ..checkpoints.publish import staged_folder, sync_directory
from ..checkpoints.room import Room, room_at
from ..checkpoints.sharing import shared_bytes
from ..checkpoints.source import Source
from ..checkpoints.watched import Seen, Watch
from ..engine.computed import gains_on_gpu, working_bytes
from ..engine.convert import Written, plan_digest, read_again, total_bytes, written
from ..engine.copy import Segment, sync_file
from ..engine.digests import FileDigest, digest_of, file_digest
from ..engine.part_queue import ListedParts, Segments
from ..engine.parts import SHARED_BYTES, Part, cut_parts, part_bytes_for
from ..engine.processes import Copy, CopyOptions, do_parts
from ..engine.reading import BUFFER_BYTES
from ..jobs.errors import BadInputError, FerryError, TransientError
from ..jobs.locations import Locations
from ..jobs.spec import ConversionSpec, replaces
from ..jobs.spec_sources import refuse_target
from ..jobs.state import CheckpointResult, Progress, Timings
from ..mapping.bindings import Model
from ..mapping.blocks import Plan
from .context import JobContext, Prepared
from .linking import Linked, link_files
from .setup_checks import BaseOrigin
from .verification import verify_written
from .work_folder import WorkFolder, open_work

_INTERPRETER_BYTES = 64 * 2**20
"""Anonymous memory of a copy process beside its buffers, rounded up (measured: 20-40 MiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOver:
    """What an extracted adapter leaves of the difference of two checkpoints; norms are Frobenius'."""

    relative_error: float
    """Of all adapted tensors together."""
    tensors: Mapping[str, Mapping[str, float]]
    """Of each: the difference's `norm`, and the `relative_error`."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A conversion that was checked and laid out; nothing is written yet."""

    kind: Literal["import", "export", "merge", "adapter", "setup"]
    source: Path
    target: Path
    model: Model
    weights: Source
    plan: Plan
    items: tuple[Item, ...]
    files: tuple[TargetFile, ...]
    small_files: Mapping[str, bytes]
    """Indexes and the like that follow from the layout."""
    carried: Mapping[str, Path]
    """Files carried over as found, by their path inside the target."""
    sources: tuple[FileIdentity, ...]
    part_bytes: int | None = None
    """As the spec says, if it does."""
    touched: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    """What adapters change, and the norm of what they add; None where only the written values will tell it."""
    left_over: LeftOver | None = None
    """Of an adapter that was extracted."""
    linked: Mapping[str, Linked] = field(default_factory=dict[str, Linked])
    """Files that are shared with another folder, by their path inside the target."""
    linked_tensors: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digests of the tensors in them, as far as they are known."""
    facts: Mapping[str, object] = field(default_factory=dict[str, object])
    """What plan and manifest say beside."""
    seen: Seen = field(default_factory=Seen)
    """All that planning asked of the sources: names that were looked for and not there, too."""
    base: BaseOrigin | None = None
    """Of a setup."""

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The tensor files, cut."""
        return cut_parts(self.files, self.part_bytes or part_bytes_for(self.bytes))

    @property
    def bytes(self) -> int:
        return total_bytes(self.files)

    @cached_property
    def shared_bytes(self) -> int:
        """Of them, those that the file system lets output and source have together."""
        return shared_bytes((span for part in self.parts for span in part.spans), self.target)

    @cached_property
    def digest(self) -> str:
        return plan_digest(self.plan, self.files)

    def refuse_changed(self) -> tuple[Path, ...]:
        """BadInputError where what decided it is not what it was; answers files that may have been written over."""
        seen = {identity.path for identity in self.seen.files}
        unseen = refuse_changed(identity for identity in self.sources if identity.path not in seen)
        return (*self.seen.refuse_changed(), *unseen)


def watched[S: ConversionSpec](prepare: Callable[[S, Locations], Conversion]) -> Callable[[S, Locations], Conversion]:
    """The same plan, of a job whose target is free and none of its sources, with all that was asked for it."""

    def over_watched_paths(spec: S, locations: Locations) -> Conversion:
        watch, watched_locations = watching(spec, locations)
        return replace(prepare(spec, watched_locations), seen=watch.seen)

    return over_watched_paths


def watching(spec: ConversionSpec, locations: Locations) -> tuple[Watch, Locations]:
    """What notes all that planning asks for, and where it asks; begun where the target is free and no source."""
    watch = Watch()
    watched_locations = watch.over(locations)
    refuse_target(spec, watched_locations)
    return watch, watched_locations


def describe(conversion: Conversion, options: CopyOptions) -> dict[str, object]:
    """The plan as JSON: what `--plan` prints."""
    parts = conversion.parts
    largest = max(conversion.items, key=lambda item: item.nbytes, default=None)
    room, needed = room_at(conversion.target), needed_bytes(conversion)
    refuse_small_disk(conversion.target, needed, room)
    return {
        "kind": conversion.kind,
        "family": conversion.model.family.name,
        "source": str(conversion.source),
        "target": str(conversion.target),
        "bytes": conversion.bytes,
        "plan_digest": conversion.digest,
        "memory_bound_bytes": memory_bound_bytes(conversion, min(options.processes, len(parts))),
        "largest_tensor": {"name": largest.label, "bytes": largest.nbytes} if largest else None,
        "disk": {
            "filesystem": room.filesystem,
            "needed_bytes": needed,
            "shared_bytes": conversion.shared_bytes,
            "free_bytes": room.free_bytes,
            "reserved_bytes": 0,
            "fits": needed <= room.free_bytes,
        },
        "files": [{"path": file.path, "bytes": file.size} for file in conversion.files],
        "parts": [{"file": part.file, "offset": part.spans[0].offset, "bytes": part.bytes} for part in parts],
        "tasks": [
            {
                "target": str(task.target),
                "dtype": task.dtype,
                "shape": list(task.shape),
                "bytes": item.nbytes,
                "blocks": [[str(block.source), block.start, block.rows] for block in task.blocks],
            }
            for task, item in zip(conversion.plan.tasks, conversion.items, strict=True)
        ],
        "dropped": [asdict(left) for left in conversion.plan.dropped],
        "filled": [asdict(left) for left in conversion.plan.filled],
        "carried": sorted(conversion.carried),
        "small_files": sorted(conversion.small_files),
        "linked": {name: str(linked.path) for name, linked in sorted(conversion.linked.items())},
        **_touched(conversion, conversion.touched),
        **conversion.facts,
    }


def memory_bound_bytes(conversion: Conversion, processes: int) -> int:
    """Anonymous memory of all copy processes together; it grows with the number of tensors, never with their size.

    A merge's grows with the largest factors too.
    """
    per_tensor = 16 * 2**10
    adding = max((working_bytes(extent) for item in conversion.items for extent in item.extents), default=0)
    return processes * (_INTERPRETER_BYTES + 2 * BUFFER_BYTES + per_tensor * len(conversion.items) + adding)


def carry_out(
    conversion: Conversion,
    spec: ConversionSpec,
    context: JobContext,
    started: float,
    late_files: Callable[[], dict[str, bytes]],
    late_norms: Callable[[], Mapping[str, float]] = dict[str, float],
) -> Prepared:
    """Write everything into a staged folder. `late_files` answers small files that were made beside the copy.

    `late_norms` are those of touched tensors that were not known when the conversion was planned.
    """
    staged = staged_folder(conversion.target, context.staging_suffix, replaces=replaces(spec))
    room = room_at(conversion.target)
    refuse_small_disk(conversion.target, needed_bytes(conversion), room)
    context.lock(staged.path)
    work = open_work(staged, context.earlier(conversion.target), fingerprint(conversion, spec), conversion.files)
    try:
        return _fill(work, conversion, spec, context, room, started, late_files, late_norms)
    except BaseException:
        if context.leaves_partial:
            work.leave()
        else:
            work.discard()
        raise


def fingerprint(conversion: Conversion, spec: ConversionSpec) -> str:
    """Of all that decides what is written where: parts of a job with another one are of no use."""
    digests = {identity.path: identity.digest for identity in conversion.seen.files}
    sources = [
        (one.path.name, one.bytes, one.mtime_ns, one.inode, digests.get(one.path) or one.ctime_ns)
        for one in conversion.sources
    ]
    parts = [(part.file, part.spans[0].offset, part.bytes) for part in conversion.parts]
    return digest_of(repr((__version__, spec.model_dump(), sources, conversion.digest, parts)).encode())


def _fill(
    work: WorkFolder,
    conversion: Conversion,
    spec: ConversionSpec,
    context: JobContext,
    room: Room,
    started: float,
    late_files: Callable[[], dict[str, bytes]],
    late_norms: Callable[[], Mapping[str, float]],
) -> Prepared:
    staged, parts = work.staged, conversion.parts
    resumed = sum(parts[number].bytes for number in work.journal.done)
    # What is written already counts as room that this job has.
    context.reserve(replace(room, free_bytes=room.free_bytes + resumed), needed_bytes(conversion))
    plan_seconds = time.monotonic() - started
    try:
        done = _write(work, conversion, context, resumed)
    except FerryError:
        conversion.refuse_changed()  # A file that went away or became shorter is no fault of the disk.
        raise
    conversion.refuse_changed()  # What is written beside would be another one's.
    work.journal.end(staged.path)
    finalizing = time.monotonic()
    context.report(Progress(phase="finalizing", done_bytes=conversion.bytes, total_bytes=conversion.bytes))
    files = dict(done.files) | _write_small_files(staged.path, conversion, late_files())
    files |= link_files(staged.path, conversion.linked, copy_options(conversion, context), _ignored)
    touched = {**conversion.touched, **late_norms()}
    verified = verify_written(conversion, spec, staged.path, done, context)
    _refuse_set_back(conversion, conversion.refuse_changed(), done, context)
    result = CheckpointResult(
        kind=conversion.kind,
        target=str(conversion.target),
        tensors=len(conversion.items),
        bytes=conversion.bytes,
        resumed_bytes=resumed,
        touched=len(conversion.touched),
        relative_error=conversion.left_over.relative_error if conversion.left_over else None,
        plan_digest=conversion.digest,
        timings=Timings(
            plan_seconds=round(plan_seconds, 4),
            copy_seconds=round(done.copy_seconds, 4),
            finalize_seconds=round(time.monotonic() - finalizing, 4),
        ),
        verified=verified,
    )
    write_manifest(staged.path, _manifest(conversion, spec, context, result, done, files, touched))
    context.rules.ownership(conversion.target).give(staged.path)
    for folder, _, _ in os.walk(staged.path, topdown=False):
        sync_directory(Path(folder))
    return Prepared(staged=staged, result=result)


def _refuse_set_back(conversion: Conversion, touched: Sequence[Path], done: Written, context: JobContext) -> None:
    """BadInputError where a source holds other bytes than were written, without a trace in its size and time.

    Links and rights that changed look the same from outside; so it is read again.
    """
    shared = {linked.path for linked in conversion.linked.values()}
    for path in [path for path in touched if path not in shared][:1]:
        if read_again(conversion.parts, copy_options(conversion, context), _ignored) != done.files:
            raise set_back(path)


def _ignored(done: int) -> None:
    """Reading what is linked is no progress of the copy."""


def _write(work: WorkFolder, conversion: Conversion, context: JobContext, resumed: int) -> Written:
    """All parts that are not written yet, alone or with other workers."""
    started, parts, journal = time.monotonic(), conversion.parts, work.journal
    left = [number for number in range(len(parts)) if number not in journal.done]
    touched = {parts[number].file for number in journal.done}
    report = _copying(context, conversion.bytes, resumed)
    options = copy_options(conversion, context)
    if context.board is not None and is_shared(conversion, left):
        shared = context.board.offer(parts, journal)
        do_parts(parts, shared, Copy(work.staged.path, sync_parts=True), options, report)
        finished = shared.finished
    else:

        def heard(number: int, segments: Segments) -> None:
            journal.add(number, segments, synced=False)

        if left:
            do_parts(parts, ListedParts(left, heard), Copy(work.staged.path), options, report)
        finished = journal.done
    for file in sorted(touched):  # What an earlier attempt wrote may still be on its way to the disk.
        sync_file(work.staged.path / file)
    return written(parts, finished, time.monotonic() - started)


def copy_options(conversion: Conversion, context: JobContext) -> CopyOptions:
    """How its parts are written."""
    return CopyOptions(
        processes=context.copy_processes,
        limits=context.rules.io_limits(conversion.source, conversion.target),
        gpu=context.gpu and gains_on_gpu(extent for item in conversion.items for extent in item.extents),
        permit=context.permit,
    )


def is_shared(conversion: Conversion, left: Sequence[int]) -> bool:
    """Whether other workers are asked to help."""
    large = sum(conversion.parts[number].bytes for number in left) >= SHARED_BYTES
    if conversion.left_over is not None:  # others would have to extract it once more
        return False
    return len(left) > 1 and (large or conversion.part_bytes is not None)


def refuse_small_disk(target: Path, needed: int, room: Room) -> None:
    """BadInputError where the target's file system could not even hold the output alone."""
    if needed > room.size_bytes:
        raise BadInputError(
            "bad_location",
            f"target {target}",
            found=f"a file system of {room.size_bytes:,} bytes",
            expected=f"one that holds {needed:,} bytes",
            next_step="Choose a target elsewhere.",
        )


def refuse_full_disk(room: Room, needed_bytes: int) -> None:
    """TransientError where the room does not suffice: what a run without a service does about it."""
    if needed_bytes > room.free_bytes:
        raise TransientError(
            "disk_full",
            f"file system {room.filesystem}",
            found=f"{room.free_bytes:,} bytes free",
            expected=f"{needed_bytes:,} bytes",
            next_step="Free space, or choose a target elsewhere.",
        )


def needed_bytes(conversion: Conversion) -> int:
    """Room that the output takes: its bytes, but for holes of the source that stay holes and blocks that it shares."""
    stats = [identity.path.stat() for identity in conversion.sources]
    held = sum(status.st_blocks * 512 for status in stats)
    if computes(conversion) or held >= sum(status.st_size for status in stats) // 2:
        return conversion.bytes - conversion.shared_bytes
    return min(held, conversion.bytes)


def computes(conversion: Conversion) -> bool:
    """Whether arithmetic has a part in it, or all is copied."""
    return any(is_computed(extent) for item in conversion.items for extent in item.extents)


def _touched(conversion: Conversion, norms: Mapping[str, float | None]) -> dict[str, object]:
    touched: dict[str, object] = {"touched": dict(norms)} if norms else {}
    return touched | ({"left_over": asdict(conversion.left_over)} if conversion.left_over else {})


def _copying(context: JobContext, total: int, resumed: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        context.report(Progress(phase="copying", done_bytes=min(done + resumed, total), total_bytes=total))

    return report


def _write_small_files(folder: Path, conversion: Conversion, late: dict[str, bytes]) -> dict[str, FileDigest]:
    carried = {name: path.read_bytes() for name, path in conversion.carried.items()}
    digests: dict[str, FileDigest] = {}
    for name, data in {**carried, **conversion.small_files, **late}.items():
        write_synced(folder / name, data)
        digests[name] = file_digest([Segment(0, len(data), None, digest_of(data))])
    return digests


def _manifest(
    conversion: Conversion,
    spec: ConversionSpec,
    context: JobContext,
    result: CheckpointResult,
    written: Written,
    files: dict[str, FileDigest],
    touched: Mapping[str, float | None],
) -> dict[str, object]:
    return {
        "job": context.job_id,
        "created_at": datetime.now(UTC).isoformat(),
        "spec": spec.model_dump(),
        "result": result.model_dump(),
        "family": conversion.model.family.name,
        "source": [
            {"path": str(identity.path), "bytes": identity.bytes, "mtime_ns": identity.mtime_ns}
            for identity in conversion.sources
        ],
        "plan_digest": conversion.digest,
        "digest": "xxh3-128; a file's is that of its segments' digests, a tensor's that of its segments in it",
        "files": {name: asdict(digest) for name, digest in sorted(files.items())},
        "tensors": dict(sorted({**conversion.linked_tensors, **written.tensors}.items())),
        "dropped": [asdict(left) for left in conversion.plan.dropped],
        "filled": [asdict(left) for left in conversion.plan.filled],
        **_touched(conversion, touched),
        **conversion.facts,
        "tools": {"ferry": __version__, "python": platform.python_version()},
    }
