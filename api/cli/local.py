"""`--local` and `--plan`: the job in a process of this machine, by `python -m worker`, without server or broker."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pydantic import TypeAdapter

from worker.jobs.errors import ErrorInfo, InternalError, error_from_info
from worker.jobs.spec import JobSpec
from worker.jobs.state import Progress, Result

from .places import Here

_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


def worker_command(*arguments: str) -> list[str]:
    """`python -m worker ...`; -P keeps a `worker.py` of the current directory from coming first."""
    return [sys.executable, "-P", "-m", "worker", *arguments]


def run_local(spec: JobSpec, here: Here, show: Callable[[Progress], None]) -> Result:
    """Run the job to its end; FerryError as the job fails."""
    options = _options(here)
    if here.io_bytes_per_second is not None:
        options += ["--io-bytes-per-second", str(here.io_bytes_per_second)]
    answer = _last_line(worker_command("run", spec.model_dump_json(), *options), show)
    return _RESULT.validate_python(answer["result"])


def plan_local(spec: JobSpec, here: Here) -> dict[str, Any]:
    """What the job would do."""
    return _last_line(worker_command("plan", spec.model_dump_json(), *_options(here)), _unseen)["plan"]


def _options(here: Here) -> list[str]:
    allowed = ["--allow-pickle"] if here.allow_pickle else []
    return ["--copy-processes", str(here.copy_processes), *allowed]


def families() -> list[dict[str, Any]]:
    """What can be converted."""
    return _last_line(worker_command("families"), _unseen)["families"]


def explain(source: str) -> dict[str, Any]:
    """Where each Megatron value of a config on this machine comes from."""
    return _last_line(worker_command("explain", source), _unseen)["explained"]


def _last_line(command: list[str], show: Callable[[Progress], None]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    with _started(command) as process:
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
def _started(command: list[str]) -> Generator["subprocess.Popen[str]"]:
    """The process, which ends with us.

    In a group of its own Ctrl-C does not reach it. It is asked to stop once, by us, and nothing disturbs it while it
    removes what it wrote; a second Ctrl-C only ends our waiting for that.
    """
    _leave_in_order()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _leave_in_order() -> None:
    """Asked to end or left without a terminal, unwind as after Ctrl-C; under nohup, go on."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _died(code: int) -> InternalError:
    return InternalError(
        "internal",
        "the local worker process",
        found=f"exit code {code} without an answer",
        expected="a result or an error",
        next_step="See what it printed above; if it was killed, look for the kernel's out-of-memory messages.",
    )
