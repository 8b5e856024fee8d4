"""What every job store must do, held against each of them; the Redis one on a real server."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.jobs.errors import BadInputError, ConflictError, InternalError, NotFoundError, TransientError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, ImportSpec, JobRequest
from worker.jobs.state import (
    Cancelled,
    CheckpointResult,
    ConfigResult,
    Failed,
    Progress,
    Queued,
    Running,
    Succeeded,
    Timings,
)
from worker.jobs.store import (
    Broken,
    Claim,
    Done,
    JobFilter,
    JobStore,
    Limits,
    Returned,
    Stopped,
)
from worker.jobs.waiting import WaitsForSlot
from worker.stores.redis_store import RedisStore

MakeStore = Callable[[Limits], JobStore]

LIMITS = Limits(failures=3, losses=2, retry_delay_seconds=0.1)
IMPORT = JobRequest(spec=ImportSpec(source="here:a", target="here:b"), labels={"team": "blue"})
CONFIG = JobRequest(spec=ConfigSpec(source="here:a"))
DONE = Done(
    result=CheckpointResult(
        kind="import",
        target="/data/b",
        tensors=3,
        bytes=300,
        plan_digest="d",
        timings=Timings(plan_seconds=0.1, copy_seconds=0.2, finalize_seconds=0.3),
    )
)
RETRYABLE = TransientError("disk_full", "disk", found="nothing free", expected="room", next_step="Free some.").info
FATAL = InternalError("internal", "job", found="a bug", expected="none", next_step="Report it.").info


@pytest.fixture(params=["memory", "redis"])
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    if request.param == "memory":
        return lambda limits: MemoryStore(limits=limits)
    broker: EmbeddedBroker = request.getfixturevalue("broker")
    return lambda limits: RedisStore.from_url(broker.url, limits=limits)


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store(LIMITS)


def claim(store: JobStore, job_id: str, *, worker: str = "w1", lease_seconds: float = 60) -> Claim:
    taken = store.claim(job_id, WorkerSlot(worker_id=worker, host="h"), lease_seconds=lease_seconds)
    assert taken is not None
    return taken


def lost_claim(store: JobStore, job_id: str) -> Claim:
    """A claim whose lease is over."""
    taken = claim(store, job_id, lease_seconds=0.01)
    time.sleep(0.02)
    return taken


def test_a_submitted_job_is_queued_and_found_again(store: JobStore) -> None:
    job = store.submit("job_1", IMPORT)

    assert job == store.get("job_1")
    waiting = WaitsForSlot(resource_class="cpu", position=1, slots=0)
    assert (job.id, job.request, job.state, job.attempts) == ("job_1", IMPORT, Queued(waiting=waiting), 0)
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)


def test_an_unknown_job_is_not_found(store: JobStore) -> None:
    for ask in (store.get, store.cancel):
        with pytest.raises(NotFoundError, match="job_nowhere"):
            ask("job_nowhere")

    assert store.claim("job_nowhere", WorkerSlot(worker_id="w1", host="h"), lease_seconds=1) is None


def test_the_same_idempotency_key_and_request_answer_the_first_job(store: JobStore) -> None:
    first = store.submit("job_1", IMPORT, target="/data/b", idempotency_key="k")

    again = store.submit("job_2", IMPORT, target="/data/b", idempotency_key="k")

    assert again == first
    assert [job.id for job in store.list(JobFilter()).jobs] == ["job_1"]


def test_a_job_is_found_by_its_idempotency_key(store: JobStore) -> None:
    store.submit("job_1", IMPORT, idempotency_key="k")

    found = store.find("k", IMPORT)

    assert found is not None
    assert found.id == "job_1"
    assert store.find("another", IMPORT) is None
    with pytest.raises(ConflictError):
        store.find("k", CONFIG)


def test_an_idempotency_key_with_another_request_is_a_conflict(store: JobStore) -> None:
    store.submit("job_1", IMPORT, idempotency_key="k")

    with pytest.raises(ConflictError, match="'k'") as caught:
        store.submit("job_2", CONFIG, idempotency_key="k")

    assert caught.value.info.code == "idempotency_mismatch"


def test_a_submit_sent_twice_makes_one_job(store: JobStore) -> None:
    first = store.submit("job_1", IMPORT, target="/data/b")

    assert store.submit("job_1", IMPORT, target="/data/b") == first


def test_a_target_is_reserved_while_its_job_lives(store: JobStore) -> None:
    store.submit("job_1", IMPORT, target="/data/b")
    claim(store, "job_1")

    with pytest.raises(ConflictError, match="job_1") as caught:
        store.submit("job_2", IMPORT, target="/data/b", idempotency_key="k")

    assert caught.value.info.code == "target_reserved"
    with pytest.raises(NotFoundError):
        store.get("job_2")


@pytest.mark.parametrize("outcome", [DONE, Stopped(), Broken(error=FATAL)], ids=["done", "stopped", "broken"])
def test_a_settled_job_frees_its_target(store: JobStore, outcome: Done | Stopped | Broken) -> None:
    store.submit("job_1", IMPORT, target="/data/b")

    store.settle(claim(store, "job_1"), outcome)

    assert store.submit("job_2", IMPORT, target="/data/b").id == "job_2"


def test_a_cancelled_queued_job_frees_its_target(store: JobStore) -> None:
    store.submit("job_1", IMPORT, target="/data/b")

    assert store.cancel("job_1").state == Cancelled()

    assert store.submit("job_2", IMPORT, target="/data/b").id == "job_2"


def test_a_refused_submit_keeps_its_idempotency_key_free(store: JobStore) -> None:
    store.submit("job_1", IMPORT, target="/data/b")
    with pytest.raises(ConflictError):
        store.submit("job_2", IMPORT, target="/data/b", idempotency_key="k")
    store.cancel("job_1")

    assert store.submit("job_3", IMPORT, target="/data/b", idempotency_key="k").id == "job_3"


def test_a_claim_makes_a_job_running(store: JobStore) -> None:
    store.submit("job_1", IMPORT)

    taken = claim(store, "job_1", worker="w7", lease_seconds=60)

    state = taken.job.state
    assert isinstance(state, Running)
    assert (state.worker_id, state.attempt, state.cancel_requested) == ("w7", 1, False)
    assert timedelta(seconds=50) < state.lease_expires_at - datetime.now(UTC) < timedelta(seconds=70)
    assert store.get("job_1") == taken.job
    assert taken.job.attempts == 1


def test_a_claimed_job_cannot_be_claimed_by_another(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    claim(store, "job_1")

    assert store.claim("job_1", WorkerSlot(worker_id="w2", host="h"), lease_seconds=60) is None


def test_a_worker_that_claims_what_it_holds_gets_a_new_fence(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    first = claim(store, "job_1", worker="w1")

    second = claim(store, "job_1", worker="w1")

    assert second.fence > first.fence
    assert store.heartbeat(first, Progress(), lease_seconds=60) == "fenced"
    assert store.heartbeat(second, Progress(), lease_seconds=60) == "go_on"


def test_a_heartbeat_renews_the_lease_and_shows_progress(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    taken = claim(store, "job_1", lease_seconds=0.3)
    progress = Progress(phase="copying", done_bytes=10, total_bytes=100)

    assert store.heartbeat(taken, progress, lease_seconds=60) == "go_on"
    time.sleep(0.35)

    assert store.reap() == ()
    state = store.get("job_1").state
    assert isinstance(state, Running)
    assert state.progress == progress


def test_done_settles_as_succeeded_with_its_result(store: JobStore) -> None:
    store.submit("job_1", IMPORT)

    assert store.settle(claim(store, "job_1"), DONE)

    assert store.get("job_1").state == Succeeded(result=DONE.result)


def test_a_config_result_comes_back_as_it_went_in(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    result = ConfigResult(megatron_config={"transformer": {"eps": 1e-05, "layers": [], "extra": {}, "bias": None}})

    store.settle(claim(store, "job_1"), Done(result=result))

    assert store.get("job_1").state == Succeeded(result=result)


def test_settling_twice_with_one_claim_is_settling_once(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    taken = claim(store, "job_1")

    assert store.settle(taken, Broken(error=RETRYABLE))
    assert store.settle(taken, Broken(error=RETRYABLE))

    assert isinstance(store.get("job_1").state, Queued)


def test_an_error_that_is_not_retryable_fails_the_job_at_once(store: JobStore) -> None:
    store.submit("job_1", IMPORT)

    store.settle(claim(store, "job_1"), Broken(error=FATAL))

    assert store.get("job_1").state == Failed(error=FATAL)


def test_a_retryable_error_queues_the_job_after_a_growing_delay(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    delays: list[timedelta] = []
    for _ in range(2):
        store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))
        queued = store.get("job_1").state
        assert isinstance(queued, Queued)
        assert queued.not_before is not None
        assert queued.last_error == RETRYABLE
        delays.append(queued.not_before - store.get("job_1").updated_at)
        assert store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60) is None
        time.sleep(delays[-1].total_seconds() + 0.01)

    assert [round(delay.total_seconds(), 1) for delay in delays] == [0.1, 0.2]


def test_retries_end_at_the_cap_on_failures(make_store: MakeStore) -> None:
    store = make_store(Limits(failures=3, retry_delay_seconds=0))
    store.submit("job_1", IMPORT)

    for _ in range(3):
        store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))

    job = store.get("job_1")
    assert job.state == Failed(error=RETRYABLE)
    assert job.attempts == 3


def test_a_lost_lease_returns_the_job_to_the_queue(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    lost_claim(store, "job_1")

    assert store.reap() == ("job_1",)

    state = store.get("job_1").state
    assert isinstance(state, Queued)
    assert state.last_error is not None
    assert state.last_error.code == "attempt_lost"
    assert claim(store, "job_1", worker="w2").fence == 2


def test_a_lost_lease_can_be_claimed_before_anyone_reaps(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    lost_claim(store, "job_1")

    assert claim(store, "job_1", worker="w2").fence == 2


def test_losses_count_apart_from_failures_and_have_their_cap(make_store: MakeStore) -> None:
    store = make_store(Limits(failures=1, losses=3, retry_delay_seconds=0))
    store.submit("job_1", IMPORT, target="/data/b")

    for _ in range(3):
        lost_claim(store, "job_1")
        store.reap()

    state = store.get("job_1").state
    assert isinstance(state, Failed)
    assert state.error.code == "attempt_lost"
    assert store.submit("job_2", IMPORT, target="/data/b").id == "job_2"


def test_a_stale_claim_changes_nothing(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    stale = lost_claim(store, "job_1")
    claim(store, "job_1", worker="w2")
    before = store.get("job_1")

    assert store.heartbeat(stale, Progress(done_bytes=9), lease_seconds=60) == "fenced"
    assert not store.settle(stale, DONE)

    assert store.get("job_1") == before


def test_a_stale_claim_cannot_settle_a_job_that_waits_again(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    stale = lost_claim(store, "job_1")
    store.reap()

    assert not store.settle(stale, DONE)

    assert isinstance(store.get("job_1").state, Queued)


def test_a_lease_that_ran_out_unnoticed_can_still_be_renewed(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    late = lost_claim(store, "job_1")

    assert store.heartbeat(late, Progress(), lease_seconds=60) == "go_on"
    assert store.reap() == ()


def test_cancelling_a_running_job_is_asked_of_its_worker(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    taken = claim(store, "job_1")

    state = store.cancel("job_1").state

    assert isinstance(state, Running)
    assert state.cancel_requested
    assert store.heartbeat(taken, Progress(), lease_seconds=60) == "cancel"
    assert store.settle(taken, Stopped())
    assert store.get("job_1").state == Cancelled()


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_job_cancelled_while_running_ends_cancelled_when_its_lease_is_lost(store: JobStore, lost_first: bool) -> None:
    store.submit("job_1", IMPORT, target="/data/b")
    claim(store, "job_1", lease_seconds=0.05)
    if lost_first:
        time.sleep(0.06)
    store.cancel("job_1")
    time.sleep(0.06)

    assert store.reap() == ("job_1",)

    assert store.get("job_1").state == Cancelled()
    assert store.submit("job_2", IMPORT, target="/data/b").id == "job_2"


def test_a_job_cancelled_while_running_is_not_claimed_again(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    lost_claim(store, "job_1")
    store.cancel("job_1")

    assert store.claim("job_1", WorkerSlot(worker_id="w2", host="h"), lease_seconds=60) is None

    assert store.get("job_1").state == Cancelled()


def test_a_cancelled_job_is_not_retried(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    taken = claim(store, "job_1")
    store.cancel("job_1")

    store.settle(taken, Broken(error=RETRYABLE))

    assert store.get("job_1").state == Cancelled()


def test_output_that_is_published_counts_although_a_cancel_came(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    taken = claim(store, "job_1")
    store.cancel("job_1")

    store.settle(taken, DONE)

    assert store.get("job_1").state == Succeeded(result=DONE.result)


def test_cancelling_again_or_too_late_changes_nothing(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    store.cancel("job_1")
    store.submit("job_2", IMPORT)
    store.settle(claim(store, "job_2"), DONE)

    assert store.cancel("job_1") == store.get("job_1")
    assert store.cancel("job_2").state == Succeeded(result=DONE.result)
    assert store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60) is None


def test_a_returned_job_waits_again_without_having_failed(make_store: MakeStore) -> None:
    store = make_store(Limits(failures=1, losses=1))
    store.submit("job_1", IMPORT)

    store.settle(claim(store, "job_1"), Returned())

    waiting = WaitsForSlot(resource_class="cpu", position=1, slots=0)
    assert store.get("job_1").state == Queued(waiting=waiting)
    assert claim(store, "job_1", worker="w2").fence == 2


def test_a_returned_job_that_was_to_be_cancelled_is_cancelled(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    taken = claim(store, "job_1")
    store.cancel("job_1")

    store.settle(taken, Returned())

    assert store.get("job_1").state == Cancelled()


def test_jobs_are_listed_newest_first_page_by_page(store: JobStore) -> None:
    for number in range(7):
        store.submit(f"job_{number}", CONFIG)

    pages: list[list[str]] = []
    cursor = None
    while True:
        page = store.list(JobFilter(), cursor=cursor, limit=3)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor
        if cursor is None:
            break
        store.submit(f"job_new_{len(pages)}", CONFIG)  # does not shift what follows

    assert pages == [["job_6", "job_5", "job_4"], ["job_3", "job_2", "job_1"], ["job_0"]]


def test_a_page_that_ends_with_the_last_job_has_no_next(store: JobStore) -> None:
    for number in range(3):
        store.submit(f"job_{number}", CONFIG)

    assert store.list(JobFilter(), limit=3).next_cursor is None
    assert store.list(JobFilter(state="running"), limit=3).next_cursor is None


def test_filters_join(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    store.submit("job_2", CONFIG)
    store.submit("job_3", JobRequest(spec=IMPORT.spec, labels={"team": "red", "run": "7"}))
    store.submit("job_4", JobRequest(spec=CONFIG.spec, labels={"team": "blue"}))
    claim(store, "job_4")

    def listed(which: JobFilter) -> list[str]:
        return [job.id for job in store.list(which).jobs]

    assert listed(JobFilter(kind="import")) == ["job_3", "job_1"]
    assert listed(JobFilter(state="running")) == ["job_4"]
    assert listed(JobFilter(state="queued")) == ["job_3", "job_2", "job_1"]
    assert listed(JobFilter(label=("team", "blue"))) == ["job_4", "job_1"]
    assert listed(JobFilter(label=("team", "blue"), kind="import")) == ["job_1"]
    assert listed(JobFilter(label=("team", "blue"), state="queued", kind="config")) == []


def test_filtered_pages_miss_nothing(store: JobStore) -> None:
    for number in range(20):
        store.submit(f"job_{number}", IMPORT if number % 3 == 0 else JobRequest(spec=CONFIG.spec, labels=IMPORT.labels))

    seen: list[str] = []
    cursor = None
    while True:
        page = store.list(JobFilter(kind="import", label=("team", "blue")), cursor=cursor, limit=2)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == [f"job_{number}" for number in (18, 15, 12, 9, 6, 3, 0)]


def test_text_that_is_no_cursor_is_bad_input(store: JobStore) -> None:
    for cursor in ("nonsense", "bm9uc2Vuc2U=", "ä"):
        with pytest.raises(BadInputError, match="cursor"):
            store.list(JobFilter(), cursor=cursor)


def test_names_with_strange_characters_stay_apart(store: JobStore) -> None:
    store.submit(
        "job_1", JobRequest(spec=CONFIG.spec, labels={"a=b": 'c":%1 ü'}), target="/data/b:c ü%1", idempotency_key="k:%"
    )
    store.submit("job_2", JobRequest(spec=CONFIG.spec, labels={"a": 'b=c":%1 ü'}))

    assert [job.id for job in store.list(JobFilter(label=("a=b", 'c":%1 ü'))).jobs] == ["job_1"]
    assert [job.id for job in store.list(JobFilter(label=("a", 'b=c":%1 ü'))).jobs] == ["job_2"]


def test_a_healthy_store_answers_a_ping(store: JobStore) -> None:
    store.ping()
