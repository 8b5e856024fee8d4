"""`--local` and `--plan`: the job in a process of this machine, by `python -m worker`, without server or broker."""

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from pydantic import TypeAdapter

from worker.jobs.errors import ErrorInfo, InternalError, error_from_info
from worker.jobs.spec import JobSpec
from worker.jobs.state import CheckpointResult, ConfigResult, Progress, Result

_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_STOP_SECONDS = 10.0


def worker_command(*arguments: str) -> list[str]:
    """`python -m worker ...`; -P keeps a `worker.py` of the current directory from coming first."""
    return [sys.executable, "-P", "-m", "worker", *arguments]


def run_local(spec: JobSpec, processes: int, show: Callable[[Progress], None]) -> ConfigResult | CheckpointResult:
    """Run the job to its end; FerryError as the job fails."""
    answer = _last_line(worker_command("run", spec.model_dump_json(), "--copy-processes", str(processes)), show)
    return _RESULT.validate_python(answer["result"])


def plan_local(spec: JobSpec) -> dict[str, Any]:
    """What the job would do."""
    return _last_line(worker_command("plan", spec.model_dump_json()), _unseen)["plan"]


def families() -> list[dict[str, Any]]:
    """What can be converted."""
    return _last_line(worker_command("families"), _unseen)["families"]


def _last_line(command: list[str], show: Callable[[Progress], None]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    with _stopped_with_us(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        for line in process.stdout or ():
            answer = json.loads(line)
            if "progress" in answer:
                show(Progress.model_validate(answer["progress"]))
    if "error" in answer:
        raise error_from_info(ErrorInfo.model_validate(answer["error"]))
    if process.returncode:
        raise _died(process.returncode)
    return answer


def _unseen(progress: Progress) -> None:
    pass


@contextmanager
def _stopped_with_us(process: "subprocess.Popen[str]") -> Generator["subprocess.Popen[str]"]:
    """Ctrl-C reaches the process too, which removes what it wrote; it is given the time for that."""
    try:
        with process:
            yield process
    except BaseException:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _died(code: int) -> InternalError:
    return InternalError(
        "internal",
        "the local worker process",
        found=f"exit code {code} without an answer",
        expected="a result or an error",
        next_step="See what it printed above; if it was killed, look for the kernel's out-of-memory messages.",
    )
