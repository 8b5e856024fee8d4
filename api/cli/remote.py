"""The job on a server: submitted, watched until it ends."""

import sys
from collections.abc import Mapping
from typing import Any

from worker.jobs.errors import BadInputError, error_from_info
from worker.jobs.spec import JobSpec
from worker.jobs.state import Cancelled, CheckpointResult, Failed, Job, Progress, Result, Running, Succeeded

from ..client import Client
from .progress import Show, showing


def run_remote(client: Client, spec: JobSpec, asks: Mapping[str, Any] | None = None) -> Result:
    """Submit and wait. Ctrl-C leaves the job running, and says how to find it."""
    job = client.submit(spec, **(asks or {}))
    try:
        with showing(spec.kind) as show:
            return result_of(client.wait(job.id, lambda seen: _show(seen, show)))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nThe job goes on.\n  see it  ferry show {job.id}\n  end it  ferry cancel {job.id}\n")
        raise


def result_of(job: Job) -> Result:
    """An ended job's result; its error, raised."""
    match job.state:
        case Succeeded(result=result):
            return result
        case Failed(error=error):
            raise error_from_info(error)
        case Cancelled():
            raise BadInputError(
                "bad_request",
                f"job {job.id}",
                found="cancelled",
                expected="to run to its end",
                next_step="Submit it again if that was a mistake.",
            )
        case _:
            raise AssertionError(job.state.state)  # wait() returns ended jobs alone


def _show(job: Job, show: Show) -> None:
    match job.state:
        case Running(progress=progress):
            show(progress)
        case Succeeded(result=CheckpointResult(bytes=total)):
            show(Progress(phase="finalizing", done_bytes=total, total_bytes=total))
        case _:
            pass
