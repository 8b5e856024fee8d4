"""Many jobs under many faults at random: each ends once, whole, and nothing stays behind."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from worker.jobs.state import Succeeded
from worker.jobs.store import JobFilter, Limits

if TYPE_CHECKING:
    from .conftest import Farm

JOBS = int(os.environ.get("FERRY_CHAOS_JOBS", "8"))
SEED = int(os.environ.get("FERRY_CHAOS_SEED", "1"))
BYTES_PER_SECOND = 12_000_000
"""A copy takes about two seconds."""


@dataclass
class Chaos:
    """Does harm to two workers and their broker, and starts again what it killed."""

    farm: "Farm"
    chance: random.Random
    workers: "list[subprocess.Popen[bytes]]" = field(default_factory=list)
    frozen: list[psutil.Process] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        for _ in range(2):
            self.workers.append(self.farm.start_worker(bytes_per_second=BYTES_PER_SECOND))

    def strike(self) -> None:
        faults: tuple[Callable[[], None], ...] = (
            self.kill_pool_process,
            self.kill_attempt,
            self.kill_worker,
            self.stop_worker,
            self.freeze_and_thaw,
            self.kill_broker,
        )
        fault = self.chance.choice(faults)
        self.done[fault.__name__] += 1
        fault()

    def kill_pool_process(self) -> None:
        self._signal_one("pool", signal.SIGKILL)

    def kill_attempt(self) -> None:
        self._signal_one("attempt", signal.SIGKILL)

    def kill_worker(self) -> None:
        self._replace_worker(signal.SIGKILL)

    def stop_worker(self) -> None:
        self._replace_worker(signal.SIGTERM)

    def freeze_and_thaw(self) -> None:
        """Freeze one worker with its pool process, but not its attempt; thaw the one frozen before."""
        self.thaw()
        worker = psutil.Process(self.chance.choice(self.workers).pid)
        with suppress(psutil.NoSuchProcess):
            self.frozen = [worker, *worker.children()]
            for process in self.frozen:
                process.suspend()

    def kill_broker(self) -> None:
        self.farm.broker.process.kill()
        self.farm.broker.process.wait()
        time.sleep(self.chance.uniform(0, 3))
        self.farm.restart_broker()

    def thaw(self) -> None:
        for process in self.frozen:
            if process.is_running():
                process.resume()
        self.frozen = []

    def _signal_one(self, role: str, number: int) -> None:
        if found := self.farm.processes()[role]:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(found).pid, number)

    def _replace_worker(self, number: int) -> None:
        self.thaw()
        worker = self.workers.pop(self.chance.randrange(2))
        os.kill(worker.pid, number)
        worker.wait(30)
        self.workers.append(self.farm.start_worker(bytes_per_second=BYTES_PER_SECOND))


@pytest.mark.slow
def test_every_job_ends_once_and_whole_whatever_happens(farm: "Farm") -> None:
    chaos = Chaos(farm, random.Random(SEED))
    chaos.start()
    farm.limits = Limits(failures=1000, losses=1000)  # the same job may be hit again and again
    jobs = [farm.submit().id for _ in range(JOBS)]
    deadline = time.monotonic() + 60 * JOBS

    while farm.store.list(JobFilter(state="succeeded"), limit=JOBS).jobs[JOBS - 1 :] == ():
        assert time.monotonic() < deadline, f"{chaos.done}\n{farm.logs()}"
        if sum(chaos.done.values()) < 2 * JOBS:
            chaos.strike()
        time.sleep(chaos.chance.uniform(0.5, 2.5))
    chaos.thaw()
    time.sleep(4)  # what thawed must do no more harm

    for number, job_id in enumerate(jobs, start=1):
        job = farm.store.get(job_id)
        assert isinstance(job.state, Succeeded), f"{job}\n{farm.logs()}"
        files = {path.relative_to(farm.target(number)) for path in farm.target(number).rglob("*") if path.is_file()}
        assert len(files) > 5
        for file in files - {path for path in files if path.name == "manifest.json"}:
            assert (farm.target(number) / file).read_bytes() == (farm.target(1) / file).read_bytes()
    assert farm.partials() == []
    print(chaos.done, Counter(farm.store.get(job_id).attempts for job_id in jobs))
