"""What faults do to jobs: nothing is lost, torn, published twice or left behind."""

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from worker.checkpoints.publish import partial_folders
from worker.jobs.state import Failed, Job, Queued, Running, Succeeded
from worker.jobs.store import Limits

if TYPE_CHECKING:
    from .conftest import Farm

pytestmark = pytest.mark.slow

SLOW = 5_000_000
"""Bytes per second: a copy of the random Llama takes about five seconds."""
LEASE_SECONDS = 2.0


def kill(*processes: "psutil.Process | subprocess.Popen[bytes]", number: int = signal.SIGKILL) -> None:
    for process in processes:
        os.kill(process.pid, number)


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_done_once(farm: "Farm", job: Job) -> None:
    """Succeeded, whole, with nothing beside it, and untouched from now on."""
    assert isinstance(job.state, Succeeded)
    assert partial_folders(farm.target(), job.id) == []
    published = os.stat(farm.target() / "manifest.json")
    time.sleep(LEASE_SECONDS + 1.5)  # lease over, reaper round over
    assert farm.store.get(job.id) == job
    assert os.stat(farm.target() / "manifest.json") == published
    assert partial_folders(farm.target(), job.id) == []


@pytest.mark.parametrize("victim", ["attempt", "copier"])
def test_a_killed_attempt_is_tried_again(farm: "Farm", victim: str) -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()

    kill(farm.processes()[victim][0])

    waiting = farm.until_state("queued").state
    assert isinstance(waiting, Queued)
    assert waiting.last_error is not None
    assert waiting.last_error.code == "attempt_lost"
    assert farm.partials() == []
    job = farm.until_state("succeeded")
    assert job.attempts == 2
    assert_done_once(farm, job)


def test_a_killed_pool_process_takes_its_attempt_along_and_the_job_goes_on_at_once(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=SLOW, FERRY_LEASE_SECONDS="60")
    farm.submit()
    farm.until_copying()
    before = farm.processes()

    kill(before["pool"][0])

    farm.until_copying(attempt=2)  # Celery looks after its pool every five seconds; the lease is far from over
    assert not any(lives(process) for process in [*before["attempt"], *before["copier"]])
    job = farm.until_state("succeeded")
    assert job.attempts == 2
    assert_done_once(farm, job)


def test_a_killed_worker_leaves_no_process_and_no_target_and_another_finishes_the_job(farm: "Farm") -> None:
    worker = farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()
    before = [process for role in farm.processes().values() for process in role]
    assert len(before) >= 4

    kill(worker)

    time.sleep(0.5)
    assert not any(lives(process) for process in before)
    assert not any(farm.processes().values())
    assert not farm.target().exists()
    assert isinstance(farm.store.get("job_1").state, Running)
    farm.start_worker()
    job = farm.until_state("succeeded")
    assert job.attempts == 2
    assert_done_once(farm, job)


@pytest.mark.parametrize("away_seconds", [0.0, LEASE_SECONDS + 2.5], ids=["shortly", "longer-than-a-lease"])
def test_a_killed_broker_costs_no_job(farm: "Farm", away_seconds: float) -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.submit()
    farm.until_copying()

    kill(farm.broker.process)
    farm.broker.process.wait()
    time.sleep(away_seconds)
    assert not farm.target().exists()
    farm.restart_broker()

    assert_done_once(farm, farm.until_state("succeeded", seconds=90))
    farm.until_state("succeeded", "job_2", seconds=90)


def test_an_attempt_stops_when_the_store_is_away_for_longer_than_its_lease(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=SLOW // 5)
    farm.submit()
    farm.until_copying()

    kill(farm.broker.process)
    farm.broker.process.wait()

    attempts = farm.processes()["attempt"]
    time.sleep(LEASE_SECONDS + 3)
    assert not any(lives(process) for process in attempts)


def test_a_frozen_worker_changes_nothing_when_it_thaws(farm: "Farm") -> None:
    frozen = farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()
    asleep = [process for role in ("worker", "pool") for process in farm.processes()[role]]
    kill(*asleep, number=signal.SIGSTOP)  # its attempt copies on, to the end
    farm.start_worker()

    job = farm.until_state("succeeded")
    kill(*asleep, number=signal.SIGCONT)

    assert job.attempts == 2
    assert_done_once(farm, job)
    assert frozen.poll() is None


def test_a_frozen_worker_that_dies_before_it_thaws_leaves_nothing_of_its_attempt(farm: "Farm") -> None:
    frozen = farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()
    processes = farm.processes()
    attempt = processes["attempt"][0]
    kill(processes["worker"][0], processes["pool"][0], number=signal.SIGSTOP)
    farm.start_worker()
    farm.until_state("succeeded")

    psutil.wait_procs([attempt], timeout=15, callback=None)  # it has written its last files, to a folder long cleared
    kill(frozen)

    assert farm.partials() == []


def test_a_worker_frozen_with_its_attempt_changes_nothing_when_it_thaws(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()
    asleep = [process for role in farm.processes().values() for process in role]
    kill(*asleep, number=signal.SIGSTOP)
    farm.start_worker(bytes_per_second=SLOW)
    farm.until_copying(attempt=2)

    kill(*asleep, number=signal.SIGCONT)

    assert_done_once(farm, farm.until_state("succeeded"))


def test_a_job_whose_worker_died_can_still_be_cancelled(farm: "Farm") -> None:
    kill_me = farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()
    kill(kill_me)
    kill_me.wait()

    farm.store.cancel("job_1")
    farm.start_worker(FERRY_KEEP_PARTIALS_SECONDS="0")

    farm.until_state("cancelled", seconds=15)
    assert not farm.target().exists()
    farm.until_cleared()


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL], ids=["by themselves", "by another's hand"])
def test_attempts_that_keep_dying_end_at_the_cap(farm: "Farm", how: signal.Signals) -> None:
    farm.limits = Limits(failures=3) if how == signal.SIGSEGV else Limits(failures=1, losses=3)
    farm.start_worker(bytes_per_second=SLOW, FERRY_KEEP_PARTIALS_SECONDS="0")
    farm.submit()

    for attempt in (1, 2, 3):
        farm.until_copying(attempt=attempt)
        os.kill(farm.processes()["attempt"][0].pid, how)

    job = farm.until_state("failed")
    assert isinstance(job.state, Failed)
    assert job.state.error.code == "attempt_lost"
    assert job.attempts == 3
    farm.until_cleared()
    assert not farm.target().exists()
    farm.submit()
    farm.until_copying("job_2")  # the worker is well
