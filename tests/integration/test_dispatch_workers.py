"""Jobs on real workers: they run, show progress, stop when asked, and end once."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.jobs.spec import ConfigSpec, ExportSpec, ImportSpec, JobRequest
from worker.jobs.state import Cancelled, CheckpointResult, ConfigResult, Failed, Queued, Running, Succeeded
from worker.stores.connection import connect

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Farm

QUEUE = "ferry.cpu\x06\x163"
"""Kombu's list for the normal priority."""
SLOW = 5_000_000
"""Bytes per second: a copy of the random Llama takes about five seconds."""


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / "manifest.json").read_text())


def test_a_submitted_job_is_done_and_published(farm: "Farm") -> None:
    farm.start_worker()
    farm.submit()

    job = farm.until_state("succeeded")

    assert isinstance(job.state, Succeeded)
    assert isinstance(job.state.result, CheckpointResult)
    assert job.state.result.target == str(farm.target())
    assert manifest(farm.target())["job"] == "job_1"
    assert job.attempts == 1
    assert farm.partials() == []


def test_a_config_job_answers_without_leaving_files(farm: "Farm") -> None:
    farm.start_worker()
    before = set(farm.root.iterdir())
    farm.store.submit("job_1", JobRequest(spec=ConfigSpec(source="here:llama")))

    job = farm.until_state("succeeded")

    assert isinstance(job.state, Succeeded)
    assert isinstance(job.state.result, ConfigResult)
    assert job.state.result.megatron_config["transformer"]["num_layers"] == 6
    assert set(farm.root.iterdir()) == before


def test_progress_is_seen_at_least_twice_a_second_while_bytes_move(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=2 * SLOW)
    farm.submit()
    farm.until_copying()

    changes: list[float] = []
    seen = -1
    while isinstance(state := farm.store.get("job_1").state, Running) and state.progress.phase == "copying":
        if state.progress.done_bytes != seen:
            seen = state.progress.done_bytes
            changes.append(time.monotonic())
        time.sleep(0.02)

    assert len(changes) >= 4
    assert (len(changes) - 1) / (changes[-1] - changes[0]) >= 2


def test_bad_input_fails_at_once_and_is_never_retried(farm: "Farm") -> None:
    farm.start_worker()
    farm.submit(ImportSpec(source="here:nowhere", target="here:out-1"))

    job = farm.until_state("failed")

    assert isinstance(job.state, Failed)
    assert job.state.error.code == "missing_file"
    assert job.attempts == 1


def test_a_location_outside_the_workers_roots_is_refused_by_the_worker_too(farm: "Farm") -> None:
    farm.start_worker()
    farm.submit(ImportSpec(source="here:llama", target="elsewhere:out-1"))

    job = farm.until_state("failed")

    assert isinstance(job.state, Failed)
    assert job.state.error.code == "bad_location"


def test_a_cancel_in_mid_copy_stops_it_and_leaves_nothing(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=SLOW // 4, FERRY_KEEP_PARTIALS_SECONDS="0")
    farm.submit()
    farm.until_copying()

    farm.store.cancel("job_1")
    job = farm.until_state("cancelled", seconds=5)

    assert job.state == Cancelled()
    farm.until_cleared()
    assert not farm.target().exists()
    assert farm.processes()["attempt"] == []
    assert farm.processes()["copier"] == []


def test_a_worker_is_free_again_after_a_cancel(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()
    farm.store.cancel("job_1")

    farm.submit()

    farm.until_state("succeeded", "job_2")


def test_a_job_cancelled_while_queued_never_starts(farm: "Farm") -> None:
    farm.submit()
    farm.submit()
    farm.store.cancel("job_1")
    farm.start_worker()

    farm.until_state("succeeded", "job_2")

    assert farm.store.get("job_1").attempts == 0
    assert not farm.target(1).exists()


def test_a_duplicate_message_changes_nothing(farm: "Farm") -> None:
    farm.submit()
    with connect(farm.broker.url) as redis:
        message = redis.lindex(QUEUE, 0)
        for number in range(3):
            redis.lpush(QUEUE, message.replace("job_1:1", f"job_1:again-{number}"))
    for _ in range(2):
        farm.start_worker(bytes_per_second=2 * SLOW)

    job = farm.until_state("succeeded")
    time.sleep(1)

    assert job.attempts == 1
    assert farm.store.get("job_1") == job


def test_a_replacement_makes_what_was_there_go_and_can_be_replaced_again(farm: "Farm") -> None:
    (farm.root / "out-1").mkdir()
    (farm.root / "out-1" / "old").touch()
    farm.start_worker()

    for number in (1, 2):
        farm.jobs = number - 1
        farm.store.submit(
            f"job_{number}",
            JobRequest(spec=ImportSpec(source="here:llama", target="here:out-1", on_exists="replace")),
            target=str(farm.target(1)),
        )
        farm.until_state("succeeded", f"job_{number}")
        assert manifest(farm.target(1))["job"] == f"job_{number}"

    assert not (farm.target(1) / "old").exists()
    assert farm.partials() == []


def test_an_export_replaces_what_stands_at_its_target(farm: "Farm") -> None:
    farm.start_worker()
    farm.submit()
    farm.until_state("succeeded")
    (farm.root / "back").mkdir()
    spec = ExportSpec(source="here:out-1", target="here:back", on_exists="replace")

    farm.store.submit("job_2", JobRequest(spec=spec), target=str(farm.root / "back"))
    farm.until_state("succeeded", "job_2")

    assert (farm.root / "back" / "config.json").exists()
    assert farm.partials() == []


@pytest.mark.slow
def test_a_job_whose_message_was_lost_is_found_by_the_reaper(farm: "Farm") -> None:
    farm.submit()
    with connect(farm.broker.url) as redis:
        redis.delete(QUEUE)
    farm.start_worker()

    assert farm.until_state("succeeded", seconds=40).attempts == 1


def test_two_workers_share_the_jobs(farm: "Farm") -> None:
    for _ in range(2):
        farm.start_worker(bytes_per_second=SLOW)
    for _ in range(2):
        farm.submit()

    def workers() -> Iterator[str]:
        for job_id in ("job_1", "job_2"):
            state = farm.until_copying(job_id).state
            assert isinstance(state, Running)
            yield state.worker_id

    assert len(set(workers())) == 2


def test_a_worker_told_to_stop_returns_its_job_at_once(farm: "Farm") -> None:
    worker = farm.start_worker(bytes_per_second=SLOW // 4)
    farm.submit()
    farm.until_copying()

    worker.terminate()
    job = farm.until_state("queued", seconds=5)

    assert isinstance(job.state, Queued)
    assert job.state.last_error is None
    assert farm.partials() == []
    worker.wait(10)
    farm.start_worker()
    assert farm.until_state("succeeded").attempts == 2


def test_a_worker_told_to_stop_lets_a_short_job_end_within_its_grace(farm: "Farm") -> None:
    worker = farm.start_worker(bytes_per_second=2 * SLOW, FERRY_GRACE_SECONDS="6")
    farm.submit()
    farm.until_copying()

    worker.terminate()

    assert farm.until_state("succeeded").attempts == 1
    worker.wait(15)


def test_an_idle_worker_stops_at_once(farm: "Farm") -> None:
    worker = farm.start_worker()
    farm.submit()
    farm.until_state("succeeded")

    worker.terminate()

    worker.wait(5)


def test_neither_celery_nor_the_pool_process_loads_torch(farm: "Farm") -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit()
    farm.until_copying()

    processes = farm.processes()

    assert len(processes["worker"]) == len(processes["pool"]) == len(processes["attempt"]) == 1
    for process in (process for role in processes.values() for process in role):
        libraries = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in libraries
        assert "numpy" not in libraries or process not in processes["worker"]


def test_a_rolling_restart_loses_nothing_and_fails_nothing(farm: "Farm") -> None:
    workers = [farm.start_worker(bytes_per_second=2 * SLOW) for _ in range(2)]
    for _ in range(6):
        farm.submit()
    farm.until_copying()

    for number in range(4):  # each place twice
        workers[number % 2].terminate()
        workers[number % 2].wait(20)
        workers[number % 2] = farm.start_worker(bytes_per_second=2 * SLOW)
        until(lambda: len(farm.store.slots()) == 2 or None, seconds=20, what="two slots")

    for number in range(1, 7):
        farm.until_state("succeeded", f"job_{number}", seconds=120)
        events = [event.event for event in farm.store.events(f"job_{number}")]
        assert set(events).isdisjoint({"lost", "broken", "failed"}), events
        assert events.count("succeeded") == 1
    assert farm.partials() == []
