"""A job's plan without the job: made by the worker's own command, in a process of its own."""

import asyncio
import json
import sys
from typing import Any

from worker.jobs.errors import ErrorInfo, TransientError, error_from_info
from worker.jobs.spec import JobSpec
from worker.jobs.store import JobStore

_SECONDS = 60.0


async def plan_of(spec: JobSpec) -> dict[str, Any]:
    """What the job would do. FerryError as the job itself would fail; `spec` holds resolved paths."""
    command = (sys.executable, "-P", "-m", "worker", "plan", spec.model_dump_json())
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    except TimeoutError:
        raise _no_plan(f"no plan within {_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _read(output)


def with_reservations(plan: dict[str, Any], store: JobStore) -> dict[str, Any]:
    """The plan's view of the disk, less what running jobs have still to write there."""
    disk = plan["disk"]
    reserved = store.reserved_bytes(disk["filesystem"])
    fits = disk["needed_bytes"] <= disk["free_bytes"] - reserved
    return plan | {"disk": disk | {"reserved_bytes": reserved, "fits": fits}}


def _read(output: bytes) -> dict[str, Any]:
    lines = output.splitlines()
    if not lines:
        raise _no_plan("no answer")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise error_from_info(ErrorInfo.model_validate(answer["error"]))
    return answer["plan"]


def _no_plan(found: str) -> TransientError:
    return TransientError(
        "io_error",
        "the plan",
        found=found,
        expected="a plan from `python -m worker plan`",
        next_step="Try again; if it repeats, read the API's log.",
    )
