"""What every job store must do beyond one attempt: history, retry, dependencies, GPUs, disks, parts, retention."""

import json
import time
from collections.abc import Callable

import pytest

from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.jobs.errors import BadInputError, ConflictError, InternalError, NotFoundError, TransientError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, ExportSpec, ImportSpec, JobRequest
from worker.jobs.state import SCHEMA_VERSION, Cancelled, ConfigResult, Failed, Progress, Queued, Running, Succeeded
from worker.jobs.store import Broken, Claim, Done, JobFilter, JobStore, Limits, Lost, Postponed, Stopped, WakeUp
from worker.jobs.waiting import Waiting, WaitsForDevices, WaitsForDisk, WaitsForJobs, WaitsForRetry, WaitsForSlot
from worker.stores.connection import connect
from worker.stores.redis_store import RedisStore

CONFIG = JobRequest(spec=ConfigSpec(source="here:a"))
IMPORT = JobRequest(spec=ImportSpec(source="here:a", target="here:b"))
DONE = Done(result=ConfigResult(megatron_config={}))
CPU = WorkerSlot(worker_id="w1", host="h")
GPUS = tuple(WorkerSlot(worker_id=f"g{number}", host="h", gpu=f"GPU-{number}") for number in range(3))
RETRYABLE = TransientError("io_error", "disk", found="an error", expected="none", next_step="Retry.").info
FATAL = InternalError("internal", "job", found="a bug", expected="none", next_step="Report it.").info
GONE = TransientError("attempt_lost", "it", found="its end", expected="an end", next_step="Wait.").info
LIMITS = Limits(failures=2, losses=3, retry_delay_seconds=0.05)

MakeStore = Callable[..., JobStore]


@pytest.fixture(params=["memory", "redis"])
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    if request.param == "memory":
        return lambda **options: MemoryStore(limits=LIMITS, **options)
    broker: EmbeddedBroker = request.getfixturevalue("broker")
    return lambda **options: RedisStore.from_url(broker.url, limits=LIMITS, **options)


@pytest.fixture
def store(make_store: MakeStore) -> JobStore:
    return make_store()


def claim(store: JobStore, job_id: str, slot: WorkerSlot = CPU, *, lease_seconds: float = 60) -> Claim:
    taken = store.claim(job_id, slot, lease_seconds=lease_seconds)
    assert taken is not None
    return taken


def waiting(store: JobStore, job_id: str) -> Waiting:
    state = store.get(job_id).state
    assert isinstance(state, Queued)
    return state.waiting


def request(**options: object) -> JobRequest:
    return JobRequest.model_validate({"spec": CONFIG.spec, **options})


def told(store: JobStore, job_id: str) -> list[str]:
    return [event.event for event in store.events(job_id)]


def test_a_job_keeps_its_history(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))
    time.sleep(0.06)
    store.settle(claim(store, "job_1"), DONE)

    events = store.events("job_1")

    assert [event.event for event in events] == ["submitted", "claimed", "broken", "claimed", "succeeded"]
    assert [event.number for event in events] == [1, 2, 3, 4, 5]
    assert [event.attempt for event in events] == [0, 1, 1, 2, 2]
    assert (events[1].worker_id, events[1].host, events[2].error) == ("w1", "h", RETRYABLE)
    assert store.events("job_1", after=3) == events[3:]
    assert store.events("job_1", after=9) == ()
    with pytest.raises(NotFoundError):
        store.events("job_nowhere")


def test_an_attempt_that_vanished_is_no_failure_and_has_a_cap_of_its_own(store: JobStore) -> None:
    store.submit("job_1", CONFIG)

    for _ in range(2):
        store.settle(claim(store, "job_1"), Lost(error=GONE))
    assert isinstance(store.get("job_1").state, Queued)
    store.settle(claim(store, "job_1"), Lost(error=GONE))

    assert store.get("job_1").state == Failed(error=GONE)


def test_a_postponed_job_says_what_it_waits_for_and_counts_no_failure(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    full = WaitsForDisk(filesystem="disk", needed_bytes=2**40, free_bytes=7)

    for _ in range(4):
        store.settle(claim(store, "job_1"), Postponed(waiting=full, seconds=0.05))
        assert waiting(store, "job_1") == full
        assert store.claim("job_1", CPU, lease_seconds=60) is None
        time.sleep(0.06)

    assert claim(store, "job_1").fence == 5


def test_a_job_after_a_failure_waits_for_its_retry(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))

    assert isinstance(waiting(store, "job_1"), WaitsForRetry)


def test_jobs_wait_in_the_order_of_priority_and_then_of_time(store: JobStore) -> None:
    for name, priority in (("a", "low"), ("b", "normal"), ("c", "high"), ("d", "normal")):
        store.submit(name, request(priority=priority))
    store.announce(CPU, seconds=60)

    def position(name: str) -> int:
        found = waiting(store, name)
        assert isinstance(found, WaitsForSlot)
        assert found.slots == 1
        return found.position

    assert sorted("abcd", key=position) == ["c", "b", "d", "a"]
    claim(store, "b")
    assert [position(name) for name in "cda"] == [1, 2, 3]


def test_slots_count_while_they_are_alive(store: JobStore) -> None:
    store.announce(CPU, seconds=60)
    store.announce(GPUS[0], seconds=0.05)
    assert store.slots() == (GPUS[0], CPU)

    time.sleep(0.06)
    store.reap()

    assert store.slots() == (CPU,)
    store.withdraw("w1")
    assert store.slots() == ()


def test_a_job_for_gpus_says_that_no_worker_offers_so_many(store: JobStore) -> None:
    for slot in GPUS:
        store.announce(slot, seconds=60)
    store.submit("two", request(gpus=2))
    store.submit("four", request(gpus=4))

    assert waiting(store, "two") == WaitsForSlot(resource_class="gpu:2", position=1, slots=1)
    assert waiting(store, "four") == WaitsForSlot(resource_class="gpu:4", position=1, slots=0)


def test_a_job_for_a_gpu_is_not_run_without_one(store: JobStore) -> None:
    store.submit("job_1", request(gpus=1))

    assert store.claim("job_1", CPU, lease_seconds=60) is None
    taken = claim(store, "job_1", GPUS[1])

    assert taken.devices == ("GPU-1",)
    state = store.get("job_1").state
    assert isinstance(state, Running)
    assert (state.host, state.devices) == ("h", ("GPU-1",))


def test_several_gpus_are_leased_all_or_none_and_kept_for_who_needs_them(store: JobStore) -> None:
    for slot in GPUS:
        store.announce(slot, seconds=60)
    store.submit("one", request(gpus=1))
    store.submit("three", request(gpus=3))
    store.submit("small", request(gpus=1))
    one = claim(store, "one", GPUS[0])

    assert store.claim("three", GPUS[1], lease_seconds=60) is None
    assert waiting(store, "three") == WaitsForDevices(needed=3, free=2, host="h")
    assert store.claim("small", GPUS[2], lease_seconds=60) is None, "the host is kept for the larger job"

    store.settle(one, DONE)
    three = claim(store, "three", GPUS[1])
    assert three.devices == ("GPU-1", "GPU-0", "GPU-2")
    assert store.claim("small", GPUS[0], lease_seconds=60) is None, "its GPU is leased to its neighbour"

    store.settle(three, DONE)
    assert claim(store, "small", GPUS[0]).devices == ("GPU-0",)


def test_a_host_that_was_kept_for_a_cancelled_job_is_free_again(store: JobStore) -> None:
    for slot in GPUS[:2]:
        store.announce(slot, seconds=60)
    store.submit("one", request(gpus=1))
    store.submit("two", request(gpus=2))
    store.submit("small", request(gpus=1))
    claim(store, "one", GPUS[0])
    assert store.claim("two", GPUS[1], lease_seconds=60) is None

    store.cancel("two")

    assert claim(store, "small", GPUS[1]).devices == ("GPU-1",)


def test_a_job_runs_after_those_that_it_depends_on(store: JobStore) -> None:
    store.submit("a", CONFIG)
    store.submit("b", CONFIG)
    store.settle(claim(store, "b"), DONE)
    store.submit("c", request(depends_on=("a", "b")))

    assert waiting(store, "c") == WaitsForJobs(jobs=("a",))
    assert store.claim("c", CPU, lease_seconds=60) is None
    store.settle(claim(store, "a"), DONE)

    assert isinstance(waiting(store, "c"), WaitsForSlot)
    assert claim(store, "c").fence == 1


@pytest.mark.parametrize("outcome", [Stopped(), Broken(error=FATAL)], ids=["cancelled", "failed"])
def test_a_job_fails_with_one_that_it_depends_on(store: JobStore, outcome: Stopped | Broken) -> None:
    store.submit("a", CONFIG)
    store.submit("b", JobRequest(spec=IMPORT.spec, depends_on=("a",)), target="/data/b")
    store.submit("c", request(depends_on=("b",)))

    store.settle(claim(store, "a"), outcome)

    for name, dependency in (("b", "a"), ("c", "b")):
        state = store.get(name).state
        assert isinstance(state, Failed)
        assert (state.error.code, state.error.thing) == ("dependency_failed", f"depends_on: job {dependency}")
    assert store.submit("d", IMPORT, target="/data/b").id == "d"
    with pytest.raises(ConflictError, match="job a"):
        store.submit("e", request(depends_on=("a",)))
    with pytest.raises(BadInputError, match="job nowhere"):
        store.submit("e", request(depends_on=("nowhere",)))


def test_a_job_that_depends_on_another_in_two_ways_ends_once(store: JobStore) -> None:
    store.submit("a", CONFIG)
    store.submit("b", request(depends_on=("a",)))
    store.submit("c", request(depends_on=("a", "b")))

    store.cancel("a")

    assert [told(store, name) for name in "bc"] == [["submitted", "failed"]] * 2


def test_a_failed_job_can_be_retried_with_its_counts_at_zero(store: JobStore) -> None:
    store.submit("job_1", IMPORT, target="/data/b")
    store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))
    time.sleep(0.06)
    store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))
    assert isinstance(store.get("job_1").state, Failed)

    assert isinstance(store.retry("job_1").state, Queued)

    with pytest.raises(ConflictError, match="job_1"):
        store.submit("job_2", IMPORT, target="/data/b")
    store.settle(claim(store, "job_1"), Broken(error=RETRYABLE))
    assert isinstance(store.get("job_1").state, Queued)
    assert store.get("job_1").attempts == 3
    assert "retried" in told(store, "job_1")


def test_what_waits_runs_or_succeeded_is_not_retried(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    assert isinstance(store.retry("job_1").state, Queued)
    taken = claim(store, "job_1")
    assert isinstance(store.retry("job_1").state, Running)
    store.settle(taken, DONE)

    with pytest.raises(ConflictError, match="succeeded"):
        store.retry("job_1")
    with pytest.raises(NotFoundError):
        store.retry("job_nowhere")
    assert store.get("job_1").state == Succeeded(result=DONE.result)


def test_a_job_whose_target_was_taken_is_not_retried(store: JobStore) -> None:
    store.submit("job_1", IMPORT, target="/data/b")
    store.cancel("job_1")
    store.submit("job_2", IMPORT, target="/data/b")

    with pytest.raises(ConflictError, match="job_2"):
        store.retry("job_1")

    assert store.get("job_1").state == Cancelled()


def test_a_job_that_publishes_cannot_be_cancelled_any_more(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    taken = claim(store, "job_1")

    assert store.publish(taken, lease_seconds=60) == "go_on"
    state = store.cancel("job_1").state

    assert isinstance(state, Running)
    assert (state.publishing, state.cancel_requested) == (True, False)
    assert store.publish(taken, lease_seconds=60) == "go_on"
    assert told(store, "job_1") == ["submitted", "claimed", "publishing"]


def test_what_is_cancelled_or_taken_over_is_not_published(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    stale = claim(store, "job_1")
    taken = claim(store, "job_1")
    store.cancel("job_1")

    assert store.publish(stale, lease_seconds=60) == "fenced"
    assert store.publish(taken, lease_seconds=60) == "cancel"


def test_running_jobs_keep_the_room_that_they_have_still_to_fill(store: JobStore) -> None:
    for name in "abc":
        store.submit(name, CONFIG)
    a, b, c = claim(store, "a"), claim(store, "b", GPUS[0]), claim(store, "c", GPUS[1])

    assert store.reserve_disk(a, "disk", needed_bytes=60, free_bytes=100) is None
    assert store.reserve_disk(b, "disk", needed_bytes=50, free_bytes=100) == 40
    assert store.reserve_disk(b, "other", needed_bytes=50, free_bytes=100) is None
    store.heartbeat(a, Progress(done_bytes=20, total_bytes=60), lease_seconds=60)
    assert store.reserve_disk(c, "disk", needed_bytes=50, free_bytes=80) == 40
    store.settle(a, DONE)
    assert store.reserve_disk(c, "disk", needed_bytes=50, free_bytes=80) is None


def test_parts_are_taken_once_and_stay_done_under_their_fingerprint(store: JobStore) -> None:
    store.submit("job_1", CONFIG)
    assert store.take_part("job_1", lease_seconds=60) is None
    first = claim(store, "job_1")
    assert store.open_parts(first, "print", 3) is not None

    zero, one = store.take_part("job_1", lease_seconds=60), store.take_part("job_1", lease_seconds=0.01)
    assert zero
    assert one
    assert (zero.number, one.number) == (0, 1)
    assert store.part_done(zero, "digest 0")
    time.sleep(0.02)
    again = store.take_part("job_1", lease_seconds=60)

    assert again
    assert again.number == 1
    assert again.fence > one.fence
    assert not store.part_done(one, "late")
    assert not store.renew_part(one, lease_seconds=60)
    assert store.renew_part(again, lease_seconds=60)

    second = claim(store, "job_1")
    assert not store.part_done(again, "of a lost attempt")
    opened = store.open_parts(second, "print", 3)
    assert opened
    assert (opened.count, opened.done) == (3, {0: "digest 0"})
    assert [part.number for part in (store.take_part("job_1", lease_seconds=60),) if part] == [1]
    reopened = store.open_parts(second, "another", 3)
    assert reopened
    assert reopened.done == {}
    assert store.open_parts(first, "print", 3) is None
    store.settle(second, DONE)
    assert store.parts("job_1") is None


def test_what_attempts_left_is_kept_for_a_retry_for_a_while_and_then_cleaned_up(make_store: MakeStore) -> None:
    store = make_store(keep_partials_seconds=0.3)
    store.submit("job_1", IMPORT)
    claim(store, "job_1", lease_seconds=0.01)
    time.sleep(0.02)
    store.reap()
    assert store.unclean() == ()
    store.cancel("job_1")
    assert store.unclean() == ()
    store.retry("job_1")
    time.sleep(0.31)
    assert store.unclean() == ()

    store.cancel("job_1")
    time.sleep(0.31)

    (unclean,) = store.unclean()
    assert (unclean.job.id, unclean.fence) == ("job_1", 1)
    store.cleaned(unclean)
    assert store.unclean() == ()


def test_what_lost_attempts_of_a_succeeded_job_left_is_cleaned_up_at_once(store: JobStore) -> None:
    store.submit("job_1", IMPORT)
    claim(store, "job_1", lease_seconds=0.01)
    time.sleep(0.02)
    store.reap()
    store.settle(claim(store, "job_1"), DONE)

    (unclean,) = store.unclean()

    assert unclean.fence == 1


def test_ended_jobs_are_forgotten_after_their_retention(make_store: MakeStore) -> None:
    store = make_store(retention_seconds=0.1)
    store.submit("job_1", JobRequest(spec=CONFIG.spec, labels={"a": "b"}), idempotency_key="k")
    store.submit("job_2", CONFIG)
    store.cancel("job_1")
    store.reap()
    assert store.get("job_1").state == Cancelled()

    time.sleep(0.12)
    store.reap()

    with pytest.raises(NotFoundError):
        store.get("job_1")
    assert [job.id for job in store.list(JobFilter()).jobs] == ["job_2"]
    assert store.list(JobFilter(label=("a", "b"))).jobs == ()
    assert store.submit("job_3", CONFIG, idempotency_key="k").id == "job_3"


def test_another_broker_is_told_what_to_send(broker: EmbeddedBroker) -> None:
    store = RedisStore.from_url(broker.url, sends_messages=False, patience_seconds=0.05)
    store.submit("job_1", request(priority="high", gpus=2))
    message = WakeUp(job_id="job_1", queue="ferry.gpu.2", priority=9)

    assert store.take_wake_ups() == (message,)
    assert store.take_wake_ups() == ()
    time.sleep(0.06)
    store.reap(empty_queues=["ferry.cpu"])
    assert store.take_wake_ups() == (), "its message may still be in its queue"
    store.reap(empty_queues=["ferry.gpu.2"])

    assert store.take_wake_ups() == (message,)


def test_a_record_of_a_newer_version_is_refused_and_left_alone(broker: EmbeddedBroker) -> None:
    store = RedisStore.from_url(broker.url)
    store.submit("job_1", CONFIG)
    with connect(broker.url) as redis:
        redis.hset("ferry:job:job_1", "schema_version", SCHEMA_VERSION + 1)

        assert store.claim("job_1", CPU, lease_seconds=60) is None
        with pytest.raises(InternalError, match=f"schema version {SCHEMA_VERSION + 1}") as caught:
            store.get("job_1")

        assert caught.value.info.code == "newer_record"
        assert redis.hget("ferry:job:job_1", "state") == "queued"


def test_a_record_that_nobody_can_read_is_an_error_of_its_job_alone(broker: EmbeddedBroker) -> None:
    store = RedisStore.from_url(broker.url)
    store.submit("job_1", CONFIG)
    with connect(broker.url) as redis:
        redis.hset("ferry:job:job_1", "request", json.dumps({"spec": {"kind": "unheard"}}))

    with pytest.raises(InternalError) as caught:
        store.get("job_1")

    assert caught.value.info.code == "unreadable_record"
    assert "job_1" in caught.value.info.thing


def test_a_record_that_nobody_can_read_leaves_the_others_in_the_list(broker: EmbeddedBroker) -> None:
    store = RedisStore.from_url(broker.url)
    for job_id in ("job_1", "job_2", "job_3"):
        store.submit(job_id, CONFIG)
    with connect(broker.url) as redis:
        redis.hset("ferry:job:job_1", "schema_version", SCHEMA_VERSION + 1)
        redis.hset("ferry:job:job_2", "request", json.dumps({"spec": {"kind": "unheard"}}))

    page = store.list(JobFilter(), limit=50)

    assert [job.id for job in page.jobs] == ["job_3"]
    assert [why.code for why in page.unreadable] == ["unreadable_record", "newer_record"]
    assert "job_2" in page.unreadable[0].thing


def test_what_was_accepted_before_it_was_refused_is_read(broker: EmbeddedBroker) -> None:
    store = RedisStore.from_url(broker.url)
    spec = {"kind": "export", "source": "data:a", "target": "data:b", "max_shard_bytes": 1}

    store.submit("job_1", JobRequest.model_validate({"spec": spec}))

    assert store.get("job_1").request.spec == ExportSpec(source="data:a", target="data:b", max_shard_bytes=1)


def test_records_of_version_1_are_read_and_their_jobs_run(broker: EmbeddedBroker) -> None:
    store = RedisStore.from_url(broker.url)
    with connect(broker.url) as redis:
        record = {
            "id": "job_1",
            "sequence": 1,
            "schema_version": 1,
            "state": "queued",
            "request": '{"spec":{"kind":"config","source":"here:a"},"labels":{}}',
            "attempts": 0,
            "max_failures": 3,
            "max_losses": 20,
            "retry_delay_ms": 2000,
            "created_at": 1_700_000_000_000,
            "updated_at": 1_700_000_000_000,
        }
        redis.hset("ferry:job:job_1", mapping=record)
        redis.zadd("ferry:jobs", {"job_1": 1})
        redis.zadd("ferry:state:queued", {"job_1": 1})
        redis.zadd("ferry:woken", {"job_1": 1_700_000_000_000})

        assert store.get("job_1").request == CONFIG
        assert store.reap() == ("job_1",)
        assert redis.llen("ferry.cpu\x06\x163") == 1
        store.settle(claim(store, "job_1"), DONE)

    assert store.get("job_1").state == Succeeded(result=DONE.result)


def test_what_running_jobs_have_still_to_write_is_told(store: JobStore) -> None:
    for name in ("job_1", "job_2"):
        store.submit(name, CONFIG)
    first, second = claim(store, "job_1"), claim(store, "job_2", WorkerSlot(worker_id="w9", host="h"))
    store.reserve_disk(first, "disk", needed_bytes=50, free_bytes=100)
    store.reserve_disk(second, "disk", needed_bytes=30, free_bytes=100)
    store.heartbeat(first, Progress(done_bytes=20, total_bytes=50), lease_seconds=60)

    assert store.reserved_bytes("disk") == 60
    assert store.reserved_bytes("another") == 0
