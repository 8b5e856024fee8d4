"""Real workers on a real broker: started as commands, watched from outside, never left behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.llama_folder import write_llama
from worker.dispatch.embedded_broker import EmbeddedBroker, start_embedded_broker
from worker.dispatch.tied import tied
from worker.jobs.spec import ImportSpec, JobRequest
from worker.jobs.state import Job, Running
from worker.jobs.store import Limits
from worker.stores.redis_store import RedisStore

LEASE_SECONDS = 2.0
PROJECT = Path(__file__).parents[2]


def until[T](seen: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """The first true answer of `seen`; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := seen():
            return answer
        time.sleep(0.02)
    pytest.fail(f"not within {seconds} s: {what}")


@pytest.fixture(scope="session")
def llama() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ferry-llama-")) / "llama"
    write_llama(folder, layers=6, hidden=256)
    yield folder
    shutil.rmtree(folder.parent)


@pytest.fixture(scope="session")
def warm_model_configs() -> Iterator[Path]:
    """One warm process for all workers of the run; it needs seconds to start, the first import waits for it."""
    folder = Path(tempfile.mkdtemp(prefix="ferry-warm-"))
    socket = folder / "s"
    process = subprocess.Popen(
        tied([sys.executable, "-m", "worker", "model-configs", socket]), cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    yield socket
    process.kill()
    process.wait()
    shutil.rmtree(folder)


@dataclass
class Farm:
    """A broker, workers and a folder that is the root `here`."""

    root: Path
    data: Path
    broker: EmbeddedBroker
    model_configs: Path
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    jobs: int = 0
    limits: Limits = field(default_factory=Limits)

    @property
    def store(self) -> RedisStore:
        return RedisStore.from_url(self.broker.url, limits=self.limits)

    def start_worker(
        self, *, bytes_per_second: int | None = None, code: str = "", **environment: str
    ) -> "subprocess.Popen[bytes]":
        """A worker command; `bytes_per_second` makes the farm's copies slow, `code` stands in for the command."""
        limit = {"FERRY_IO_BYTES_PER_SECOND": str(bytes_per_second)} if bytes_per_second else {}
        settings = {
            "FERRY_DATA": str(self.data),
            "FERRY_BROKER_URL": self.broker.url,
            "FERRY_ROOTS": f"here={self.root}",
            "FERRY_MODEL_CONFIGS": str(self.model_configs),
            "FERRY_LEASE_SECONDS": str(LEASE_SECONDS),
            "FERRY_GRACE_SECONDS": "0",
            **limit,
            **environment,
        }
        with (self.data / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = subprocess.Popen(
                tied([sys.executable, *(["-c", code] if code else ["-m", "worker", "work"])]),
                cwd=PROJECT,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def restart_broker(self) -> None:
        with (self.data / "broker.log").open("ab") as log:
            self.broker = start_embedded_broker(self.data, log)

    def submit(self, spec: ImportSpec | None = None) -> Job:
        """An import of the random Llama into a target of its own, unless told otherwise."""
        self.jobs += 1
        spec = spec or ImportSpec(source="here:llama", target=f"here:out-{self.jobs}")
        return self.store.submit(f"job_{self.jobs}", JobRequest(spec=spec), target=str(self.target(self.jobs)))

    def target(self, number: int = 1) -> Path:
        return self.root / f"out-{number}"

    def until_state(self, state: str, job_id: str = "job_1", *, seconds: float = 60) -> Job:
        def reached() -> Job | None:
            job = self.store.get(job_id)
            return job if job.state.state == state else None

        try:
            return until(reached, seconds=seconds, what=f"{job_id} {state}")
        except pytest.fail.Exception:
            pytest.fail(f"{job_id} is {self.store.get(job_id).state}, not {state}\n{self.logs()}")

    def until_copying(self, job_id: str = "job_1", *, attempt: int = 1) -> Job:
        """The job in the middle of its copy."""

        def copying() -> Job | None:
            job = self.store.get(job_id)
            state = job.state
            started = isinstance(state, Running) and state.attempt == attempt and state.progress.done_bytes > 0
            return job if started else None

        return until(copying, seconds=30, what=f"{job_id} copying in attempt {attempt}\n{self.logs()}")

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What lives on this farm's data folder, by role: workers, their pool processes, attempts and copiers."""
        roles: dict[str, list[psutil.Process]] = {"worker": [], "pool": [], "attempt": [], "copier": []}
        alive = self._alive()
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                depth = sum(parent in alive for parent in process.parents())
                roles[list(roles)[min(depth, 3)]].append(process)
        return roles

    def _alive(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = _environment(process).get("FERRY_DATA") == str(self.data)
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def partials(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("*.partial-*"))

    def until_cleared(self) -> None:
        """Nothing half written is left: at once where next to nothing was, else after the reaper's next round."""
        until(lambda: not self.partials(), seconds=15, what=f"no partial folders beside {self.target()}")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.data.glob("*.log")))


def _environment(process: psutil.Process) -> Mapping[str, str]:
    return process.environ()


@pytest.fixture
def farm(llama: Path, warm_model_configs: Path) -> Iterator[Farm]:
    folder = Path(tempfile.mkdtemp(prefix="ferry-farm-"))
    root, data = folder / "root", folder / "data"
    data.mkdir()
    shutil.copytree(llama, root / "llama", copy_function=os.link)
    with (data / "broker.log").open("wb") as log:
        broker = start_embedded_broker(data, log)
    farm = Farm(root=root, data=data, broker=broker, model_configs=warm_model_configs)
    yield farm
    for worker in farm.workers:
        if worker.poll() is None:
            os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    farm.broker.process.kill()
    farm.broker.process.wait()
    until(lambda: not any(farm.processes().values()), seconds=5, what="the end of all processes of the farm")
    shutil.rmtree(folder)
