"""An attempt's memory: bounded by a cgroup or by watching, and an OOM kill told apart from any other."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from worker.dispatch import slot as slot_module
from worker.dispatch.attempt import start_attempt
from worker.dispatch.attempt_lines import Answered, encode
from worker.dispatch.birth import born, lives
from worker.dispatch.memory import AttemptMemory
from worker.dispatch.memory_group import MemoryGroup, make_memory_group
from worker.dispatch.slot import Slot
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, JobRequest
from worker.jobs.state import ConfigResult, Queued, Succeeded
from worker.lifeline import adopt_orphans
from worker.settings import WorkerSettings

MIB = 2**20
LIMIT = 128 * MIB


def hold(nbytes: int) -> bytearray:
    """Memory that is there, page by page."""
    held = bytearray(nbytes)
    held[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(held[:: os.sysconf("SC_PAGE_SIZE")])
    return held


def answer(telling: int) -> None:
    os.write(telling, encode(Answered(result=ConfigResult(megatron_config={}))))


def modest(*given: object) -> None:
    hold(LIMIT // 2)
    answer(int(str(given[-1])))


def greedy(*given: object) -> None:
    held = hold(3 * LIMIT)
    time.sleep(2)
    answer(int(str(given[-1])))
    del held


def greedy_child(*given: object) -> None:
    """The memory is a grandchild's, as with copy processes."""
    if os.fork() == 0:
        greedy(*given)
        os._exit(0)
    os.wait()


@pytest.fixture
def group() -> Iterator[MemoryGroup | None]:
    made = make_memory_group()
    yield made
    if made is not None:
        made.remove()


@pytest.fixture(params=["cgroup", "watched"])
def run(
    request: pytest.FixtureRequest, group: MemoryGroup | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., MemoryStore]:
    """Runs a job whose attempt does as told, with a limit of memory."""
    if request.param == "cgroup" and group is None:
        pytest.skip("no cgroup can be made here")
    adopt_orphans()
    store = MemoryStore()
    slot = Slot(
        store=store,
        settings=WorkerSettings.from_environment({"FERRY_ROOTS": f"here={tmp_path}"}),
        who=WorkerSlot(worker_id="w1", host="h"),
        model_configs=tmp_path / "nobody.sock",
        memory_group=group if request.param == "cgroup" else None,
    )

    def run(deeds: Callable[..., None], memory_bytes: int | None, job_id: str = "job_1") -> MemoryStore:
        monkeypatch.setattr(slot_module, "handle", deeds)
        store.submit(job_id, JobRequest(spec=ConfigSpec(source="here:a"), memory_bytes=memory_bytes))
        slot.run_job(job_id)
        return store

    return run


Run = Callable[..., MemoryStore]


@pytest.mark.parametrize("deeds", [greedy, greedy_child])
def test_a_job_that_takes_more_than_it_may_ends_with_that_reason(run: Run, deeds: Callable[..., None]) -> None:
    state = run(deeds, LIMIT).get("job_1").state

    assert isinstance(state, Queued), state
    assert state.last_error is not None
    assert state.last_error.code == "out_of_memory"
    assert f"{LIMIT:,}" in state.last_error.message


def test_a_job_within_its_limit_is_not_touched(run: Run) -> None:
    assert isinstance(run(modest, LIMIT).get("job_1").state, Succeeded)


def test_a_limit_is_that_of_its_job_alone(run: Run) -> None:
    run(modest, LIMIT)
    store = run(greedy, None, "job_2")
    assert isinstance(store.get("job_2").state, Succeeded)


def test_a_killed_attempt_is_no_oom_kill(group: MemoryGroup | None) -> None:
    adopt_orphans()
    memory = AttemptMemory(None, group)
    attempt = start_attempt(lambda _: time.sleep(60), memory)
    os.kill(attempt.pid, signal.SIGKILL)
    attempt.lines(wait_seconds=5)
    attempt.close()
    assert not memory.oom_killed()


def test_what_is_left_in_the_group_ends_with_the_attempt(group: MemoryGroup | None, tmp_path: Path) -> None:
    if group is None:
        pytest.skip("no cgroup can be made here")
    note = tmp_path / "pid"

    def leave_something(telling: int) -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                note.write_text(str(os.getpid()))
                time.sleep(600)
            os._exit(0)
        answer(telling)

    attempt = start_attempt(leave_something, AttemptMemory(None, group))
    deadline = time.monotonic() + 10
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    attempt.close()

    left = int(note.read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_a_group_that_its_worker_left_is_removed_with_what_runs_in_it(group: MemoryGroup | None) -> None:
    if group is None:
        pytest.skip("no cgroup can be made here")
    space = str(born(os.getpid())).partition("-")[0]
    abandoned = MemoryGroup(group.folder.with_name(f"ferry-{space}-4194300-1"), group.version)
    strange = group.folder.with_name("ferry-1-4194300-1")
    abandoned.folder.mkdir()
    strange.mkdir()
    pid = os.fork()
    if pid == 0:
        abandoned.join()
        time.sleep(600)
    while not abandoned.folder.joinpath("cgroup.procs").read_text():
        time.sleep(0.01)

    try:
        make_memory_group()

        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        deadline = time.monotonic() + 5
        while abandoned.folder.exists() and time.monotonic() < deadline:
            make_memory_group()
        assert not abandoned.folder.exists()
        assert strange.exists(), "another container's is none of ours"
    finally:
        strange.rmdir()


def test_processes_are_told_apart_by_their_birth() -> None:
    me = born(os.getpid())
    assert me is not None
    assert lives(me) is True
    assert lives(me[:-1] + str((int(me[-1]) + 1) % 10)) is False
    assert lives("1-" + me.partition("-")[2]) is None
    assert born(4194300) is None
