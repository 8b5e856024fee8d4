"""Attempts as processes: what they tell, how they end, and that nothing of them stays."""

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import psutil
import pytest

from worker.dispatch.attempt import Attempt, Work, start_attempt
from worker.dispatch.attempt_lines import Answered, End, Moved, Needs, Raised, encode
from worker.dispatch.lease import Lease
from worker.dispatch.memory import AttemptMemory
from worker.dispatch.watch import Died, Patience, Told, asked_to_leave, watch
from worker.jobs.errors import InternalError, UnavailableError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, JobRequest
from worker.jobs.state import ConfigResult, Progress, Running
from worker.jobs.store import Claim, Verdict
from worker.jobs.waiting import WaitsForDisk
from worker.lifeline import adopt_orphans

ANSWER = Answered(result=ConfigResult(megatron_config={"layers": list(range(50_000))}))
"""Far more than a pipe holds."""


@contextmanager
def running(work: Work) -> Generator[Attempt]:
    attempt = start_attempt(work)
    try:
        yield attempt
    finally:
        attempt.close()


def until_told(attempt: Attempt, count: int) -> list[Moved | End]:
    lines: list[Moved | End] = []
    deadline = time.monotonic() + 10
    while len(lines) < count and time.monotonic() < deadline:
        lines += attempt.lines(wait_seconds=0.1)
    return lines


def exit_code(attempt: Attempt) -> int | None:
    deadline = time.monotonic() + 10
    while (code := attempt.exit_code()) is None and time.monotonic() < deadline:
        attempt.lines(wait_seconds=0.01)
    return code


def tell(descriptor: int, *lines: Moved | End) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as out:
        out.writelines(encode(line) for line in lines)


def moved(done_bytes: int) -> Moved:
    return Moved(progress=Progress(phase="copying", done_bytes=done_bytes, total_bytes=100))


def sleep_forever(telling: int) -> None:
    tell(telling, moved(1))
    time.sleep(600)


@pytest.fixture(autouse=True)
def orphans_come_to_us() -> None:
    """As in a pool process."""
    adopt_orphans()


@pytest.fixture
def claim() -> tuple[MemoryStore, Claim]:
    store = MemoryStore()
    store.submit("job_1", JobRequest(spec=ConfigSpec(source="here:a")))
    claim = store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)
    assert claim is not None
    return store, claim


def never() -> bool:
    return False


def watched(
    work: Work, lease: Lease, leaving: Callable[[], bool] = never, patience: Patience | None = None
) -> End | Died | Told | WaitsForDisk:
    with running(work) as attempt:
        patience = patience or Patience(timeout_seconds=None, stall_seconds=None)
        return watch(attempt, lease, leaving, patience, AttemptMemory(None, None))


def test_an_attempt_tells_progress_and_then_its_end() -> None:
    with running(lambda telling: tell(telling, moved(10), ANSWER)) as attempt:
        assert until_told(attempt, 2) == [moved(10), ANSWER]


def test_an_attempt_that_ends_without_a_word_has_an_exit_code() -> None:
    def crash(telling: int) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    with running(crash) as attempt:
        assert exit_code(attempt) == -signal.SIGSEGV


def test_closing_an_attempt_ends_all_that_it_started() -> None:
    def start_more(telling: int) -> None:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        sleep_forever(telling)

    with running(start_more) as attempt:
        until_told(attempt, 1)
        descendants = psutil.Process(attempt.pid).children(recursive=True)
        assert descendants

    assert not psutil.pid_exists(attempt.pid)
    assert not any(process.is_running() for process in descendants)


def test_orphans_of_a_dead_attempt_are_ended_too() -> None:
    def leave_an_orphan(telling: int) -> None:
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        tell(telling, moved(orphan.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    with running(leave_an_orphan) as attempt:
        (line,) = until_told(attempt, 1)
        assert isinstance(line, Moved)
        assert psutil.pid_exists(line.progress.done_bytes)

    assert not psutil.pid_exists(line.progress.done_bytes)


def test_an_attempt_dies_with_the_process_that_forked_it() -> None:
    def fork_again(telling: int) -> None:
        inner = start_attempt(sleep_forever)
        tell(telling, moved(inner.pid))
        time.sleep(600)

    with running(fork_again) as attempt:
        (line,) = until_told(attempt, 1)
        assert isinstance(line, Moved)
        inner = psutil.Process(line.progress.done_bytes)
        os.kill(attempt.pid, signal.SIGKILL)
        inner.wait(timeout=5)


def test_an_attempt_shares_no_socket_with_its_parent_and_its_files_are_safe() -> None:
    ours, theirs = socket.socketpair()

    def use_descriptors(telling: int) -> None:
        nonlocal theirs
        opened = os.open(os.devnull, os.O_WRONLY)
        del theirs  # the inherited object closes its number, which must not be `opened`
        gc.collect()
        os.write(opened, b"still open")
        tell(telling, ANSWER)
        time.sleep(600)

    with running(use_descriptors) as attempt:
        assert until_told(attempt, 1) == [ANSWER]
        theirs.close()
        assert ours.recv(1) == b""  # its end is closed although the attempt lives
    ours.close()


def test_an_attempt_that_leaks_an_exception_ends_with_an_exit_code() -> None:
    def raise_up(telling: int) -> None:
        raise SystemExit(0)

    with running(raise_up) as attempt:
        assert exit_code(attempt) == 1


def test_closing_an_attempt_spares_what_was_there_before() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    with running(sleep_forever) as attempt:
        until_told(attempt, 1)

    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_watching_passes_on_progress_and_the_end(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim

    def work(telling: int) -> None:
        tell(telling, moved(42))
        time.sleep(0.6)
        tell(telling, ANSWER)

    assert watched(work, Lease(store, taken, 60)) == ANSWER

    state = store.get("job_1").state
    assert isinstance(state, Running)
    assert state.progress.done_bytes == 42


def test_a_cancel_ends_the_watch(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim
    store.cancel("job_1")

    assert watched(sleep_forever, Lease(store, taken, 60)) == "cancel"


def test_an_attempt_that_takes_too_long_is_ended_although_it_moves(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim

    def crawl(telling: int) -> None:
        for done in range(1000):
            tell(telling, moved(done))
            time.sleep(0.05)

    patience = Patience(timeout_seconds=0.5, stall_seconds=0.4)
    assert watched(crawl, Lease(store, taken, 60), patience=patience) == "timed_out"


def test_an_attempt_that_makes_no_progress_is_ended_although_it_lives(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim

    def repeat(telling: int) -> None:
        for _ in range(1000):
            tell(telling, moved(7))
            time.sleep(0.05)

    patience = Patience(timeout_seconds=60, stall_seconds=0.4)
    assert watched(repeat, Lease(store, taken, 60), patience=patience) == "stalled"


def test_an_attempt_without_room_on_its_disk_is_told_to_wait(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim
    store.submit("job_2", JobRequest(spec=ConfigSpec(source="here:a")))
    other = store.claim("job_2", WorkerSlot(worker_id="w2", host="h"), lease_seconds=60)
    assert other is not None
    store.reserve_disk(other, "disk", needed_bytes=60, free_bytes=100)

    def ask(telling: int) -> None:
        tell(telling, Needs(filesystem="disk", needed_bytes=50, free_bytes=100))
        time.sleep(600)

    waiting = WaitsForDisk(filesystem="disk", needed_bytes=50, free_bytes=40)
    assert watched(ask, Lease(store, taken, 60)) == waiting


def test_a_fenced_claim_ends_the_watch(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim
    store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)

    assert watched(sleep_forever, Lease(store, taken, 60)) == "fenced"


def test_a_killed_attempt_ends_the_watch(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim

    def die(telling: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert watched(die, Lease(store, taken, 60)) == Died(-signal.SIGKILL)


def test_an_end_that_was_told_counts_although_the_process_was_killed_after(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim

    def tell_and_die(telling: int) -> None:
        tell(telling, moved(1), ANSWER)
        os.kill(os.getpid(), signal.SIGKILL)

    assert watched(tell_and_die, Lease(store, taken, 60)) == ANSWER


def test_a_request_to_leave_ends_the_watch(claim: tuple[MemoryStore, Claim]) -> None:
    store, taken = claim

    with asked_to_leave() as leaving:
        os.kill(os.getpid(), signal.SIGQUIT)
        assert watched(sleep_forever, Lease(store, taken, 60), leaving) == "leaving"


class AwayStore(MemoryStore):
    """A store that cannot be reached."""

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        raise UnavailableError("store_unavailable", "store", found="nothing", expected="an answer", next_step="Wait.")

    def publish(self, claim: Claim, *, lease_seconds: float) -> Verdict:
        raise UnavailableError("store_unavailable", "store", found="nothing", expected="it", next_step="Wait.")


def test_a_store_that_is_away_stops_the_attempt_once_its_lease_must_be_over(claim: tuple[MemoryStore, Claim]) -> None:
    _, taken = claim
    started = time.monotonic()

    assert watched(sleep_forever, Lease(AwayStore(), taken, 1.0)) == "fenced"

    assert 1.0 <= time.monotonic() - started < 2.5


def test_an_attempt_that_ends_while_the_store_is_away_is_not_confirmed(claim: tuple[MemoryStore, Claim]) -> None:
    _, taken = claim

    assert Lease(AwayStore(), taken, 0.3).publish() == "fenced"


def test_an_error_travels_whole() -> None:
    error = InternalError("internal", "job", found="a bug \n ü", expected="none", next_step="Report it.").info

    with running(lambda telling: tell(telling, Raised(error=error))) as attempt:
        assert until_told(attempt, 1) == [Raised(error=error)]
