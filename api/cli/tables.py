"""Jobs and families, laid out for a person."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from worker.jobs.spec import target_of
from worker.jobs.state import (
    Cancelled,
    CheckpointResult,
    Failed,
    Job,
    LogitsFigures,
    Queued,
    Running,
    Succeeded,
    VerifyResult,
)
from worker.jobs.waiting import (
    Waiting,
    WaitsForDevices,
    WaitsForDisk,
    WaitsForJobs,
    WaitsForRetry,
    WaitsForSlot,
)

from .sizes import show_size


def print_jobs(jobs: Iterable[Job]) -> None:
    """One line a job."""
    lines = table("id", "kind", "state", "age", "source", "target")
    now = datetime.now(UTC)
    for job in jobs:
        spec = job.request.spec
        age = show_age(now - job.created_at)
        lines.add_row(job.id, spec.kind, _state(job), age, _short(spec.source), _short(target_of(spec) or ""))
    console().print(lines)


def print_job(job: Job) -> None:
    """All there is to say about one."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(job):
        table.add_row(name, value)
    console().print(table)


def summary(result: CheckpointResult) -> str:
    """Where the output lies, and how fast it came."""
    seconds = result.timings.copy_seconds
    rate = f", {show_size(result.bytes / seconds)}/s" if seconds else ""
    done = f"merged ({result.touched} touched)" if result.touched else "copied"
    lines = [result.target, f"  {result.tensors} tensors, {show_size(result.bytes)} {done} in {seconds:.2f} s{rate}"]
    if result.relative_error is not None:
        lines.append(f"  leaves {result.relative_error:.2%} of the difference")
    if result.resumed_bytes:
        lines.append(f"  {show_size(result.resumed_bytes)} of them were there already, from an earlier attempt")
    if result.verified and result.verified.tensors:
        lines.append(f"  verified: {result.verified.tensors} tensors read again")
    if result.verified and result.verified.logits:
        lines.append(_logits(result.verified.logits))
    return "\n".join(lines)


def _logits(figures: LogitsFigures) -> str:
    apart = figures.max_abs_difference / figures.range if figures.range else 0.0
    bar = f"\n  bar: {figures.bar}" if figures.bar else ""
    return (
        f"  logits: largest difference {figures.max_abs_difference:.2g} ({apart:.1g} of their range), "
        f"cosine {figures.cosine:.6f}, the same first choice at {figures.top1_agreement:.1%} of places"
        f"{_rounded(figures)}{bar}"
    )


def _rounded(figures: LogitsFigures) -> str:
    if figures.rounded is None:
        return ""
    apart = figures.rounded.max_abs_difference / figures.range if figures.range else 0.0
    return f"\n  with both rounded alike: {apart:.1g} of their range, {figures.rounded.top1_agreement:.1%} of places"


def verified(result: VerifyResult) -> str:
    """What was found good, and how fast."""
    rate = f", {show_size(result.bytes / result.seconds)}/s" if result.seconds else ""
    read = f"{show_size(result.bytes)} read in {result.seconds:.2f} s{rate}"
    logits = f"\n{_logits(result.logits)}" if result.logits else ""
    differing = f"\n  {result.differing} tensors differ: {_first(result)}" if result.differing else ""
    return f"verified: {result.tensors} tensors in {result.files} files\n  {read}{differing}{logits}"


def _first(result: VerifyResult) -> str:
    more = result.differing - len(result.first_differing)
    return ", ".join(result.first_differing) + (f" and {more} more" if more else "")


def show_age(age: timedelta) -> str:
    """A number and a unit."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
        if age.total_seconds() >= seconds:
            return f"{age.total_seconds() // seconds:.0f}{unit}"
    return f"{max(0, age.total_seconds()):.0f}s"


def _short(location: str) -> str:
    """As it would be typed here."""
    path = Path(location)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else location


def _rows(job: Job) -> Iterable[tuple[str, str]]:
    yield "id", job.id
    yield "state", _state(job)
    for name, value in job.request.spec.model_dump(exclude_none=True).items():
        yield name, str(value)
    asked = job.request.model_dump(mode="json", exclude={"spec", "labels", "depends_on"}, exclude_defaults=True)
    for name, value in asked.items():
        yield name.replace("_", " "), str(value)
    if job.request.depends_on:
        yield "depends on", ", ".join(job.request.depends_on)
    for name, value in job.request.labels.items():
        yield f"label {name}", value
    yield "attempts", str(job.attempts)
    yield "created", f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S %Z}"
    yield "updated", f"{job.updated_at.astimezone():%Y-%m-%d %H:%M:%S %Z}"
    yield from _state_rows(job)


def _state_rows(job: Job) -> Iterable[tuple[str, str]]:
    match job.state:
        case Running(worker_id=worker_id, progress=progress):
            yield "worker", worker_id
            yield "progress", f"{show_size(progress.done_bytes)} of {show_size(progress.total_bytes)}"
        case Succeeded(result=CheckpointResult() as result):
            yield "output", summary(result)
        case Succeeded(result=VerifyResult() as result):
            yield "output", verified(result)
        case Succeeded():
            yield "output", f"a ModelConfig: `ferry show {job.id} --json`"
        case Failed(error=error):
            yield "error", error.message
        case Queued(waiting=waiting, last_error=error):
            yield "waits", _why(waiting)
            if error is not None:
                yield "last error", error.message
        case Cancelled():
            pass


def _why(waiting: Waiting) -> str:
    match waiting:
        case WaitsForSlot(slots=0, resource_class=resource_class):
            return f"for a worker: none that is alive runs jobs of class {resource_class}"
        case WaitsForSlot(position=position, slots=slots, resource_class=resource_class):
            return f"for a slot: number {position} of class {resource_class}, which has {slots}"
        case WaitsForDevices(needed=needed, free=free, host=host):
            return f"for {needed} free GPUs on one host: {host} has {free}"
        case WaitsForRetry(until=until):
            return f"for its next attempt at {until.astimezone():%H:%M:%S}"
        case WaitsForJobs(jobs=jobs):
            return f"for {', '.join(jobs)}"
        case WaitsForDisk(filesystem=filesystem, needed_bytes=needed, free_bytes=free):
            return f"for {show_size(needed)} on {filesystem}, where {show_size(free)} are free"


def _state(job: Job) -> str:
    match job.state:
        case Running(progress=progress, cancel_requested=cancel_requested):
            if cancel_requested:
                return "cancelling"
            if progress.total_bytes:
                return f"running {progress.done_bytes / progress.total_bytes:.0%}"
            return "running"
        case state:
            return state.state


def table(*columns: str) -> Table:
    """An empty table; columns of long text fold."""
    empty = Table(box=None, pad_edge=False)
    for column in columns:
        empty.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
    return empty


_FOLDED = (
    "source",
    "target",
    "features",
    "HF architectures",
    "HF fields",
    "proven",
    "unproven",
    "why",
    "value",
)
_FILE_COLUMNS = 400
"""Wide enough that nothing is folded where no terminal sets the width: one line a row, for grep."""


def console() -> Console:
    """Plain text in, as it is: a path may hold what rich would read as markup or an emoji's name."""
    return Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS, markup=False, emoji=False, highlight=False)
