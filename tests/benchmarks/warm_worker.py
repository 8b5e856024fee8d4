"""Conversions by a server whose worker is warm, timed from outside: by the job's record and by its first file."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from api.client import Client
from worker.jobs.errors import UnavailableError
from worker.jobs.spec import ExportSpec, ImportSpec
from worker.jobs.state import CheckpointResult, Queued, Running, Succeeded

from .legs import Bench, Times

_LOOK_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class WarmWorker:
    """A server that answers, with one worker."""

    client: Client
    look_seconds: float = 4 * _LOOK_SECONDS
    """Between two looks at a running job; each takes the service some milliseconds, which the workers may want."""

    def run(self, spec: ImportSpec | ExportSpec) -> Times:
        """One job: seconds from its claim to its first file, and from its last byte to its record's end."""
        job = self.client.submit(spec)
        while isinstance(self.client.get(job.id).state, Queued):
            time.sleep(_LOOK_SECONDS)
        claimed = time.monotonic()
        while not _copying(Path(spec.target)):
            time.sleep(_LOOK_SECONDS)
        copying = time.monotonic()
        copy_seconds = self._result(job.id).timings.copy_seconds
        seconds = {
            "copy": copy_seconds,
            "claim to copy": copying - claimed,
            "copy to succeeded": time.monotonic() - copying - copy_seconds,
        }
        return Times(seconds=seconds)

    def _result(self, job_id: str) -> CheckpointResult:
        while isinstance(state := self.client.get(job_id).state, Running):
            time.sleep(self.look_seconds)
        if isinstance(state, Succeeded) and isinstance(state.result, CheckpointResult):
            return state.result
        raise RuntimeError(f"job {job_id} ended as {state}")


@contextmanager
def warm_worker(
    bench: Bench, processes: int, slots: int = 1, look_seconds: float = 4 * _LOOK_SECONDS
) -> Iterator[WarmWorker]:
    """`ferry up` on a free port, with one import behind it; all of it ends with the context."""
    data, port = bench.folder / "data", _free_port()
    options = ["--root", f"bench={bench.folder}", "--data", str(data), "--port", str(port), "--slots", str(slots)]
    environment = {**os.environ, "FERRY_COPY_PROCESSES": str(processes)}
    environment.pop("FERRY_BROKER_URL", None)
    command = [sys.executable, "-m", "worker", "up", *options]
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        try:
            _wait_until_up(client, server)
            worker = WarmWorker(client, look_seconds)
            worker.run(bench.specs()["import"])
            yield worker
        finally:
            server.terminate()
    shutil.rmtree(data)


def _wait_until_up(client: Client, server: "subprocess.Popen[bytes]") -> None:
    while server.poll() is None:
        try:
            list(client.list(limit=1))
            return
        except UnavailableError:
            time.sleep(0.1)
    raise RuntimeError(f"`ferry up` ended with exit code {server.returncode}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _copying(target: Path) -> bool:
    """Whether an attempt has made its first file for tensors."""
    partials = target.parent.glob(f"{target.name}.partial-*")
    return any(path.suffix in (".distcp", ".safetensors") for partial in partials for path in partial.rglob("*"))
