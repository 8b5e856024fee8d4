"""What import and export share: a planned conversion, its dry-run view, its execution and its manifest."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from .. import __version__
from ..checkpoints.extents import Item, TargetFile
from ..checkpoints.identity import FileIdentity, refuse_changed
from ..checkpoints.manifest import write_manifest, write_synced
from ..checkpoints.publish import StagedFolder, stage, sync_directory
from ..checkpoints.room import Room, room_at
from ..engine.convert import Written, plan_digest, total_bytes, write_tensors
from ..engine.copy import BUFFER_BYTES, Segment
from ..engine.digests import FileDigest, digest_of, file_digest
from ..engine.parts import cut_parts, part_bytes_for
from ..engine.processes import CopyOptions
from ..jobs.errors import BadInputError, TransientError
from ..jobs.spec import ExportSpec, ImportSpec, replaces
from ..jobs.state import CheckpointResult, Progress, Timings
from ..mapping.bindings import Model
from ..mapping.blocks import Plan
from .context import JobContext, Prepared

_INTERPRETER_BYTES = 64 * 2**20
"""Anonymous memory of a copy process beside its buffers, rounded up (measured: 20-40 MiB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A conversion that was checked and laid out; nothing is written yet."""

    kind: Literal["import", "export"]
    source: Path
    target: Path
    model: Model
    plan: Plan
    items: tuple[Item, ...]
    files: tuple[TargetFile, ...]
    small_files: Mapping[str, bytes]
    """Indexes and the like that follow from the layout."""
    carried: Mapping[str, Path]
    """Files carried over as found, by their path inside the target."""
    sources: tuple[FileIdentity, ...]

    @property
    def bytes(self) -> int:
        return total_bytes(self.files)

    @property
    def digest(self) -> str:
        return plan_digest(self.plan, self.files)


def describe(conversion: Conversion, options: CopyOptions) -> dict[str, object]:
    """The plan as JSON: what `--plan` prints."""
    parts = cut_parts(conversion.files, part_bytes_for(conversion.bytes))
    largest = max(conversion.items, key=lambda item: item.nbytes)
    return {
        "kind": conversion.kind,
        "family": conversion.model.family.name,
        "source": str(conversion.source),
        "target": str(conversion.target),
        "bytes": conversion.bytes,
        "plan_digest": conversion.digest,
        "memory_bound_bytes": memory_bound_bytes(conversion, min(options.processes, len(parts))),
        "largest_tensor": {"name": largest.label, "bytes": largest.nbytes},
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
    }


def memory_bound_bytes(conversion: Conversion, processes: int) -> int:
    """Anonymous memory of all copy processes together; it grows with the number of tensors, never with their size."""
    per_tensor = 16 * 2**10
    return processes * (_INTERPRETER_BYTES + 2 * BUFFER_BYTES + per_tensor * len(conversion.items))


def carry_out(
    conversion: Conversion,
    spec: ImportSpec | ExportSpec,
    context: JobContext,
    started: float,
    late_files: Callable[[], dict[str, bytes]],
) -> Prepared:
    """Write everything into a staged folder. `late_files` answers small files that were made beside the copy."""
    room = room_at(conversion.target)
    if not _sparse(conversion):
        refuse_small_disk(conversion, room)
        context.reserve(room, conversion.bytes)
    staged = stage(conversion.target, context.staging_suffix, replaces=replaces(spec))
    try:
        return _fill(staged, conversion, spec, context, started, late_files)
    except BaseException:
        staged.discard()
        raise


def _fill(
    staged: StagedFolder,
    conversion: Conversion,
    spec: ImportSpec | ExportSpec,
    context: JobContext,
    started: float,
    late_files: Callable[[], dict[str, bytes]],
) -> Prepared:
    limits = context.rules.io_limits(conversion.source, conversion.target)
    options = CopyOptions(processes=context.copy_processes, limits=limits)
    plan_seconds = time.monotonic() - started
    written = write_tensors(conversion.files, staged.path, options, _copying(context, conversion.bytes))
    finalizing = time.monotonic()
    context.report(Progress(phase="finalizing", done_bytes=conversion.bytes, total_bytes=conversion.bytes))
    files = dict(written.files) | _write_small_files(staged.path, conversion, late_files())
    refuse_changed(conversion.sources)
    result = CheckpointResult(
        kind=conversion.kind,
        target=str(conversion.target),
        tensors=len(conversion.items),
        bytes=conversion.bytes,
        plan_digest=conversion.digest,
        timings=Timings(
            plan_seconds=round(plan_seconds, 4),
            copy_seconds=round(written.copy_seconds, 4),
            finalize_seconds=round(time.monotonic() - finalizing, 4),
        ),
    )
    write_manifest(staged.path, _manifest(conversion, spec, context, result, written, files))
    context.rules.ownership(conversion.target).give(staged.path)
    for folder, _, _ in os.walk(staged.path, topdown=False):
        sync_directory(Path(folder))
    return Prepared(staged=staged, result=result)


def refuse_small_disk(conversion: Conversion, room: Room) -> None:
    """BadInputError where the target's file system could not even hold the output alone."""
    if conversion.bytes > room.size_bytes:
        raise BadInputError(
            "bad_location",
            f"target {conversion.target}",
            found=f"a file system of {room.size_bytes:,} bytes",
            expected=f"one that holds {conversion.bytes:,} bytes",
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


def _sparse(conversion: Conversion) -> bool:
    """Holes of the source stay holes: a sparse source needs less room than its size."""
    stats = [identity.path.stat() for identity in conversion.sources]
    return sum(status.st_blocks * 512 for status in stats) < sum(status.st_size for status in stats) // 2


def _copying(context: JobContext, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        context.report(Progress(phase="copying", done_bytes=min(done, total), total_bytes=total))

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
    spec: ImportSpec | ExportSpec,
    context: JobContext,
    result: CheckpointResult,
    written: Written,
    files: dict[str, FileDigest],
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
        "tensors": dict(sorted(written.tensors.items())),
        "dropped": [asdict(left) for left in conversion.plan.dropped],
        "filled": [asdict(left) for left in conversion.plan.filled],
        "tools": {"ferry": __version__, "python": platform.python_version()},
    }
