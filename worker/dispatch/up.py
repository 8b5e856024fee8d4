"""`python -m worker up`: broker, API and workers on one machine, kept alive until told to stop."""

import signal
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from types import FrameType

from ..jobs.errors import FerryError, TransientError
from ..settings import WorkerSettings
from .data_folder import hold
from .supervisor import Supervisor
from .up_plan import UpPlan, read_arguments, with_free_port

_TICK_SECONDS = 0.1
_READY_SECONDS = 60.0

Stop = Callable[[], bool]


def main(argv: list[str]) -> int:
    """Run until SIGINT or SIGTERM; answers the exit code."""
    try:
        plan = read_arguments(argv, WorkerSettings.from_environment())
        with hold(plan.settings.data) as data:
            plan = with_free_port(plan)
            data.say_who(plan.url)
            _run(plan, _stop_signals())
        return 0
    except FerryError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if 400 <= error.status < 500 else 1


def _run(plan: UpPlan, stop: Stop) -> None:
    supervisor = Supervisor.of(plan, _say)
    try:
        _wait_until_ready(plan, supervisor, stop)
        while not stop():
            supervisor.keep()
            time.sleep(_TICK_SECONDS)
    finally:
        supervisor.stop()


def _wait_until_ready(plan: UpPlan, supervisor: Supervisor, stop: Stop) -> None:
    """Until the API says that it and the store are ready."""
    deadline = time.monotonic() + _READY_SECONDS
    while not stop():
        supervisor.keep()
        if _healthy(plan):
            _say(_greeting(plan))
            return
        if time.monotonic() > deadline:
            raise _not_ready(plan)
        time.sleep(_TICK_SECONDS)


def _stop_signals() -> Stop:
    """Whether SIGINT, SIGTERM or SIGHUP came, as a question."""
    came = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, remember)
    return lambda: came


def _healthy(plan: UpPlan) -> bool:
    connection = HTTPConnection(plan.host, plan.port, timeout=2)  # Linux takes 0.0.0.0 and :: for itself here.
    try:
        connection.request("GET", "/v1/health/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _greeting(plan: UpPlan) -> str:
    roots = "\n            ".join(f"{name} = {root.path}" for name, root in plan.settings.roots.items())
    return f"""\
Ferry is up.
  address   {plan.url}
  roots     {roots}
  data      {plan.settings.data}
  logs      {plan.logs}
  slots     {_slots(plan)}
Ctrl-C stops it; jobs and their states are kept."""


def _slots(plan: UpPlan) -> str:
    gpus = "".join(f"\n            {gpu.name}, {gpu.uuid}" for gpu in plan.gpus)
    return f"{plan.slots} without GPU{gpus}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _not_ready(plan: UpPlan) -> TransientError:
    return TransientError(
        "store_unavailable",
        f"the service at {plan.url}",
        found=f"no answer within {_READY_SECONDS:.0f} s",
        expected="a healthy API",
        next_step=f"Read the logs in {plan.logs}.",
    )
