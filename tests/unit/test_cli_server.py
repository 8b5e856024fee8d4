"""The `ferry` command with a server: what it sends, shows and leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.server import FerryServer
from worker.jobs.errors import BadInputError, FerryError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import replaces
from worker.jobs.state import CheckpointResult, Progress, Timings
from worker.jobs.store import Broken, Claim, Done, JobFilter, Outcome, Stopped

Ferry = Callable[..., "subprocess.Popen[str]"]
Worker = Callable[[Outcome], None]
SECONDS = 120
"""More than anything here takes, on a busy machine too."""


@pytest.fixture
def ferry(server: FerryServer, tmp_path: Path) -> Ferry:
    """Starts `ferry` beside the server's root, which is the current directory."""

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-c", "from api.cli import main; main()", *arguments]
        environment = os.environ | {"FERRY_URL": server.url}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
        )

    return start


@pytest.fixture
def work(store: MemoryStore) -> Iterator[Worker]:
    """A worker beside the test that ends the next job as it is told."""
    threads: list[threading.Thread] = []

    def start(outcome: Outcome) -> None:
        threads.append(threading.Thread(target=end_the_next_job, args=(store, outcome)))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def begin_the_next_job(store: MemoryStore) -> Claim:
    deadline = time.monotonic() + SECONDS
    while not (queued := store.list(JobFilter(state="queued")).jobs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    claim = store.claim(queued[0].id, WorkerSlot(worker_id="w", host="h"), lease_seconds=SECONDS)
    assert claim is not None
    store.heartbeat(claim, Progress(phase="copying", done_bytes=50, total_bytes=100), lease_seconds=SECONDS)
    return claim


def end_the_next_job(store: MemoryStore, outcome: Outcome) -> None:
    claim = begin_the_next_job(store)
    time.sleep(1)  # several looks of a client that waits
    store.settle(claim, outcome)


def imported(target: Path) -> Done:
    timings = Timings(plan_seconds=0.1, copy_seconds=2.0, finalize_seconds=0.1)
    return Done(
        result=CheckpointResult(
            kind="import", target=str(target), tensors=3, bytes=5 * 10**9, plan_digest="d", timings=timings
        )
    )


def broken() -> FerryError:
    return BadInputError("bad_config", "the config", found="this", expected="that", next_step="Mend it.")


def test_an_import_shows_progress_and_ends_with_where_the_output_lies(
    ferry: Ferry, work: Worker, store: MemoryStore, tmp_path: Path
) -> None:
    work(imported(tmp_path / "mcore"))

    out, err = (process := ferry("import", "hf", "mcore")).communicate(timeout=SECONDS)

    assert process.returncode == 0
    assert str(tmp_path / "mcore") in out
    assert "5 GB copied in 2.00 s, 2.5 GB/s" in out
    assert "import: copying, 50 B of 100 B" in err
    assert "\x1b" not in out + err
    (job,) = store.list(JobFilter()).jobs
    assert job.request.spec.source == str(tmp_path / "hf")


def test_a_failed_job_is_one_block_on_stderr_and_exit_code_2(ferry: Ferry, work: Worker) -> None:
    work(Broken(error=broken().info))

    out, err = (process := ferry("import", "data:hf", "data:mcore")).communicate(timeout=SECONDS)

    assert (process.returncode, out) == (2, "")
    assert err.endswith("ferry: the config\n  found     this\n  expected  that\n  next      Mend it.\n")


def test_a_job_that_someone_cancels_is_exit_code_2(ferry: Ferry, work: Worker) -> None:
    work(Stopped())

    _, err = (process := ferry("import", "data:hf", "data:mcore")).communicate(timeout=SECONDS)

    assert process.returncode == 2
    assert "cancelled" in err


def test_ctrl_c_leaves_the_job_and_says_how_to_find_it(ferry: Ferry, store: MemoryStore) -> None:
    process = ferry("import", "data:hf", "data:mcore")
    job_id = begin_the_next_job(store).job.id
    assert process.stderr is not None
    assert "copying" in process.stderr.readline()

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert f"ferry show {job_id}" in err
    assert f"ferry cancel {job_id}" in err
    assert "Traceback" not in err
    assert store.get(job_id).state.state == "running"


def test_a_job_can_be_left_listed_shown_and_cancelled(ferry: Ferry) -> None:
    job_id = ferry("import", "data:hf", "data:[a]:smile:", "--no-wait").communicate(timeout=SECONDS)[0].strip()

    listed = ferry("jobs", "--kind", "import").communicate(timeout=SECONDS)[0]
    as_json = json.loads(ferry("jobs", "--json").communicate(timeout=SECONDS)[0])
    shown = ferry("show", job_id).communicate(timeout=SECONDS)[0]
    cancelled = ferry("cancel", job_id).communicate(timeout=SECONDS)[0]

    assert [job["id"] for job in as_json] == [job_id]
    assert job_id in listed
    assert "data:[a]:smile:" in listed  # and not as markup, or as an emoji
    assert "data:[a]:smile:" in shown
    assert "cancelled" in cancelled


def test_a_plan_is_json_and_no_job(ferry: Ferry, store: MemoryStore) -> None:
    out, err = (process := ferry("import", "data:hf", "data:mcore", "--plan")).communicate(timeout=SECONDS)

    assert (process.returncode, out) == (2, "")  # the folder is empty: the problem that the job would have
    assert "config.json" in err
    assert store.list(JobFilter()).jobs == ()


def test_what_a_job_asks_for_reaches_the_server(ferry: Ferry, store: MemoryStore) -> None:
    first = ferry("import", "hf", "one", "--no-wait", "--replace", "--label", "run=7").communicate()[0].strip()
    asks = ("--priority", "high", "--gpus", "2", "--memory", "2GiB", "--timeout", "60", "--after", first)
    second = ferry("export", "hf", "two", "--no-wait", *asks).communicate()[0].strip()

    assert store.get(first).request.labels == {"run": "7"}
    assert replaces(store.get(first).request.spec)
    request = store.get(second).request
    assert (request.priority, request.gpus, request.memory_bytes) == ("high", 2, 2 * 2**30)
    assert (request.timeout_seconds, request.depends_on) == (60, (first,))
    shown = dict(line.split(maxsplit=1) for line in ferry("show", second).communicate()[0].splitlines())
    assert shown["gpus"].strip() == "2"
    assert shown["priority"].strip() == "high"


@pytest.mark.parametrize(
    "options",
    [
        ("--priority", "urgent"),
        ("--memory", "1kB"),
        ("--label", "run"),
        ("--timeout", "-1"),
        ("--local", "--gpus", "1"),
    ],
)
def test_what_no_job_can_ask_for_is_wrong_usage(ferry: Ferry, options: tuple[str, ...]) -> None:
    process = ferry("import", "hf", "one", "--no-wait", *options)
    output, errors = process.communicate()

    assert (process.returncode, output) == (2, "")
    assert "Traceback" not in errors
    assert errors
