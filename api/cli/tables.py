"""Jobs and families, laid out for a person."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from worker.jobs.spec import target_of
from worker.jobs.state import Cancelled, CheckpointResult, Failed, Job, Queued, Running, Succeeded

from .sizes import show_size


def print_jobs(jobs: Iterable[Job]) -> None:
    """One line a job."""
    table = _table("id", "kind", "state", "source", "target", "created")
    for job in jobs:
        spec = job.request.spec
        created = f"{job.created_at.astimezone():%Y-%m-%d %H:%M:%S}"
        table.add_row(job.id, spec.kind, _state(job), spec.source, target_of(spec) or "", created)
    _console().print(table)


def print_job(job: Job) -> None:
    """All there is to say about one."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows(job):
        table.add_row(f"[bold]{name}", value)
    _console().print(table)


def print_families(families: list[dict[str, Any]]) -> None:
    """One line a family."""
    table = _table("family", "HF architectures", "features")
    for family in families:
        table.add_row(family["name"], ", ".join(family["architectures"]), ", ".join(family["features"]))
    _console().print(table)


def summary(result: CheckpointResult) -> str:
    """Where the output lies, and how fast it came."""
    seconds = result.timings.copy_seconds
    rate = f", {show_size(result.bytes / seconds)}/s" if seconds else ""
    return f"{result.target}\n  {result.tensors} tensors, {show_size(result.bytes)} copied in {seconds:.2f} s{rate}"


def _rows(job: Job) -> Iterable[tuple[str, str]]:
    yield "id", job.id
    yield "state", _state(job)
    for name, value in job.request.spec.model_dump(exclude_none=True).items():
        yield name, str(value)
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
        case Succeeded():
            yield "output", f"a ModelConfig: `ferry show {job.id} --json`"
        case Failed(error=error):
            yield "error", error.message
        case Queued(last_error=error):
            if error is not None:
                yield "last error", error.message
        case Cancelled():
            pass


def _state(job: Job) -> str:
    match job.state:
        case Running(progress=progress, cancel_requested=cancel_requested):
            if cancel_requested:
                return "running (being cancelled)"
            if progress.total_bytes:
                return f"running {progress.done_bytes / progress.total_bytes:.0%}"
            return f"running ({progress.phase})"
        case state:
            return state.state


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
    return table


_FOLDED = ("source", "target", "features", "HF architectures")
_FILE_COLUMNS = 400
"""Wide enough that nothing is folded where no terminal sets the width: one line a row, for grep."""


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
