"""A slot in this process: what it does around an attempt, on a store in memory and real folders."""

import json
from pathlib import Path

import pytest

from worker.dispatch.partials import earlier_folders
from worker.dispatch.reaper import reap
from worker.dispatch.slot import Slot
from worker.jobs.errors import UnavailableError
from worker.jobs.locations import Roots
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, ImportSpec, JobRequest
from worker.jobs.state import CheckpointResult, Failed, Queued, Running, Succeeded, Timings
from worker.jobs.store import Broken, Claim
from worker.settings import WorkerSettings

REQUEST = JobRequest(spec=ImportSpec(source="here:nowhere", target="here:out"))
RESULT = CheckpointResult(
    kind="import",
    target="out",
    tensors=1,
    bytes=4,
    plan_digest="d",
    timings=Timings(plan_seconds=0, copy_seconds=0, finalize_seconds=0),
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def slot(store: MemoryStore, tmp_path: Path) -> Slot:
    settings = WorkerSettings.from_environment({"FERRY_ROOTS": f"here={tmp_path}"})
    return Slot(
        store=store, settings=settings, who=WorkerSlot(worker_id="w1", host="h"), model_configs=tmp_path / "nobody.sock"
    )


def publish(folder: Path, job_id: str) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"job": job_id, "result": RESULT.model_dump()}))


def test_an_output_that_a_lost_attempt_published_is_adopted(slot: Slot, store: MemoryStore, tmp_path: Path) -> None:
    store.submit("job_1", REQUEST)
    publish(tmp_path / "out", "job_1")

    slot.run_job("job_1")

    assert store.get("job_1").state == Succeeded(result=RESULT)


def test_the_output_of_another_job_is_not_adopted(slot: Slot, store: MemoryStore, tmp_path: Path) -> None:
    store.submit("job_1", REQUEST)
    publish(tmp_path / "out", "job_10")

    slot.run_job("job_1")

    state = store.get("job_1").state
    assert isinstance(state, Failed)
    assert state.error.code == "target_exists"


def test_a_target_without_a_manifest_is_not_adopted(slot: Slot, store: MemoryStore, tmp_path: Path) -> None:
    store.submit("job_1", REQUEST)
    (tmp_path / "out").mkdir()

    slot.run_job("job_1")

    assert isinstance(store.get("job_1").state, Failed)


def test_a_location_that_this_worker_may_not_use_fails_the_job(slot: Slot, store: MemoryStore) -> None:
    store.submit("job_1", JobRequest(spec=ImportSpec(source="here:a", target="here:../out")))

    slot.run_job("job_1")

    state = store.get("job_1").state
    assert isinstance(state, Failed)
    assert state.error.code == "bad_location"


def test_a_claim_clears_what_lost_attempts_left_and_nothing_else(
    slot: Slot, store: MemoryStore, tmp_path: Path
) -> None:
    store.submit("job_1", REQUEST)
    lost = ("out.partial-job_1-0", "out.partial-job_1-0-gone")
    others = ("other.partial-job_1-0", "out.partial-job_1-x", "out.partial-job_10-0")
    for name in (*lost, *others):
        (tmp_path / name).mkdir()

    slot.run_job("job_1")

    left = sorted(path.name for path in tmp_path.glob("*.partial-*"))
    assert left == sorted(others)


def test_an_attempt_finds_what_earlier_ones_left_the_latest_first(store: MemoryStore, tmp_path: Path) -> None:
    store.submit("job_1", REQUEST)
    for _ in range(3):
        claim = store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)
    assert claim is not None
    for suffix in ("1", "2", "2-gone", "3", "x"):
        (tmp_path / f"out.partial-job_1-{suffix}").mkdir()

    found = earlier_folders(tmp_path / "out", claim)

    assert [path.name for path in found] == ["out.partial-job_1-2", "out.partial-job_1-1"]


def test_reaping_leaves_a_lost_attempts_folder_to_the_next_one(store: MemoryStore, tmp_path: Path) -> None:
    store.submit("job_1", REQUEST)
    store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=0)
    (tmp_path / "out.partial-job_1-1").mkdir()

    reap(store, Roots({"here": tmp_path}))

    assert isinstance(store.get("job_1").state, Queued)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial-job_1-1"]


def test_reaping_clears_what_nobody_goes_on_with(store: MemoryStore, tmp_path: Path) -> None:
    store.submit("job_1", REQUEST)
    store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=0)
    (tmp_path / "out.partial-job_1-1").mkdir()
    store.reap()
    store.cancel("job_1")

    reap(store, Roots({"here": tmp_path}))
    assert list(tmp_path.iterdir()) != []

    store.keep_partials_seconds = 0
    reap(store, Roots({"here": tmp_path}))
    assert list(tmp_path.iterdir()) == []


def test_a_message_without_work_is_dropped(slot: Slot, store: MemoryStore) -> None:
    store.submit("job_1", JobRequest(spec=ConfigSpec(source="here:a")))
    store.claim("job_1", WorkerSlot(worker_id="w2", host="h"), lease_seconds=60)
    before = store.get("job_1")

    slot.run_job("job_1")

    assert store.get("job_1") == before
    assert isinstance(before.state, Running)


def test_a_message_of_an_unknown_job_is_dropped(slot: Slot) -> None:
    slot.run_job("job_nowhere")


class AwayStore(MemoryStore):
    """A store that cannot be reached."""

    def claim(self, job_id: str, slot: WorkerSlot, *, lease_seconds: float) -> Claim | None:
        raise UnavailableError("store_unavailable", "store", found="nothing", expected="an answer", next_step="Wait.")


def test_a_message_is_dropped_while_the_store_is_away(slot: Slot) -> None:
    away = Slot(
        store=AwayStore(),
        settings=slot.settings,
        who=WorkerSlot(worker_id="w1", host="h"),
        model_configs=slot.model_configs,
    )

    away.run_job("job_1")


def test_an_attempt_that_raises_settles_as_broken(slot: Slot, store: MemoryStore) -> None:
    store.submit("job_1", REQUEST)

    slot.run_job("job_1")

    state = store.get("job_1").state
    assert isinstance(state, Failed)
    assert Broken(error=state.error).error.code == "missing_file"
