"""The processes of `ferry up`: which there are, how they start, and in which order they stop."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..jobs.roots import entries_of
from ..settings import child_environment
from .embedded_broker import embedded_url, start_embedded_broker
from .service import Service
from .sockets import make_private, socket_path
from .tied import PROJECT, tied
from .up_plan import UpPlan

_GRACE_SECONDS = "2"
"""What a job gets to finish at a stop; a longer one goes back to the queue and starts again with the service."""
_STOP_SECONDS = 10.0
_PYTHON = (sys.executable, "-m")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervisor:
    """Groups of services, in the order in which they start. They stop the other way round."""

    groups: Sequence[Sequence[Service]]

    @classmethod
    def of(cls, plan: UpPlan, say: Say) -> Self:
        """Broker (unless the user has one), API, workers: each needs those before it to the last."""
        warm_socket = socket_path(plan.settings.data, "model-configs.sock")
        make_private(warm_socket.parent)
        environment = _environment(plan, warm_socket)

        def service(name: str, *command: str, **more: str) -> Service:
            log = plan.logs / f"{name}.log"
            return Service(name, lambda: _spawn(command, {**environment, **more}, log), say)

        def worker(name: str, devices: str, **more: str) -> Service:
            return service(name, *_PYTHON, "worker", "work", CUDA_VISIBLE_DEVICES=devices, **more)

        broker = Service("broker", lambda: _spawn_broker(plan.settings.data, plan.logs / "broker.log"), say)
        api = service("api", *_PYTHON, "api", "--host", plan.host, "--port", str(plan.port))
        warm = service("model-configs", "nice", *_PYTHON, "worker", "model-configs", str(warm_socket))
        workers = [worker(f"worker-{slot}", "", FERRY_GPU="") for slot in range(1, plan.slots + 1)]
        workers += [
            worker(f"worker-gpu-{number}", gpu.uuid, FERRY_GPU=gpu.uuid, FERRY_HOST_GPUS=str(len(plan.gpus)))
            for number, gpu in enumerate(plan.gpus)
        ]
        return cls(groups=([] if plan.settings.broker_url else [broker], [api, warm], workers))

    def keep(self) -> None:
        """Start what is not there, or not there any more. Call often."""
        for group in self.groups:
            for service in group:
                service.keep()

    def stop(self) -> None:
        """Stop everything, group by group."""
        for group in reversed(self.groups):
            for service in group:
                service.ask_to_stop()
            for service in group:
                service.wait_stopped(_STOP_SECONDS)


def _environment(plan: UpPlan, warm_socket: Path) -> Mapping[str, str]:
    settings = plan.settings
    return child_environment(
        {
            "FERRY_DATA": str(settings.data),
            "FERRY_BROKER_URL": settings.broker_url or embedded_url(settings.data),
            "FERRY_MODEL_CONFIGS": str(warm_socket),
            "FERRY_ROOTS": entries_of(settings.roots),
        },
        unless_set={"FERRY_GRACE_SECONDS": _GRACE_SECONDS},
    )


def _spawn(command: Sequence[str], environment: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops the rest in order.
    with log.open("ab") as out:
        return subprocess.Popen(
            tied(command),
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _spawn_broker(data: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return start_embedded_broker(data, out).process
