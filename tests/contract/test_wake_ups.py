"""When the Redis store sends Celery messages: once for each time that a job becomes ready, again if one was lost."""

import json
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.jobs.errors import TransientError, UnavailableError
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, JobRequest
from worker.jobs.store import Broken, JobFilter, Limits, Stopped
from worker.stores.connection import connect
from worker.stores.redis_store import RedisStore

REQUEST = JobRequest(spec=ConfigSpec(source="here:a"))
QUEUE = "ferry.cpu\x06\x163"  # kombu's list for the normal priority
PATIENCE_SECONDS = 0.2
RETRYABLE = TransientError("io_error", "disk", found="an error", expected="none", next_step="Retry.").info


@pytest.fixture
def redis(broker: EmbeddedBroker) -> Iterator[Redis]:
    with connect(broker.url) as client:
        yield client


@pytest.fixture
def store(redis: Redis) -> RedisStore:
    limits = Limits(retry_delay_seconds=0.1)
    return RedisStore(redis, limits=limits, patience_seconds=PATIENCE_SECONDS)


def waiting_messages(redis: Redis) -> list[str]:
    """Job ids in the broker's list, the next to be consumed first."""
    return [json.loads(message)["headers"]["id"] for message in reversed(redis.lrange(QUEUE, 0, -1))]


def consume(redis: Redis) -> str:
    message = redis.rpop(QUEUE)
    return json.loads(message)["headers"]["id"]


def test_submitting_sends_one_message_and_a_repeated_submit_none(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST, idempotency_key="k")
    store.submit("job_2", REQUEST, idempotency_key="k")

    assert waiting_messages(redis) == ["job_1"]


def test_messages_are_consumed_in_the_order_of_submission(store: RedisStore, redis: Redis) -> None:
    for number in range(3):
        store.submit(f"job_{number}", REQUEST)

    assert waiting_messages(redis) == ["job_0", "job_1", "job_2"]


def test_a_failed_job_is_woken_when_its_delay_is_over_and_not_before(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    consume(redis)
    claim = store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)
    assert claim is not None
    store.settle(claim, Broken(error=RETRYABLE))

    assert store.reap() == ()
    time.sleep(0.12)

    assert store.reap() == ("job_1",)
    assert waiting_messages(redis) == ["job_1"]


def test_a_lost_job_is_woken_at_once_although_others_wait(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    consume(redis)
    store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=0.01)
    store.submit("job_2", REQUEST)
    time.sleep(0.02)

    store.reap()

    assert waiting_messages(redis) == ["job_2", "job_1"]


def test_a_lost_message_is_sent_again_after_some_patience(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    consume(redis)

    assert store.reap() == ()
    time.sleep(PATIENCE_SECONDS + 0.02)
    assert store.reap() == ("job_1",)
    assert store.reap() == ()

    assert waiting_messages(redis) == ["job_1"]


def test_a_message_that_waits_for_its_turn_is_not_sent_again(store: RedisStore, redis: Redis) -> None:
    for number in range(3):
        store.submit(f"job_{number}", REQUEST)
    time.sleep(PATIENCE_SECONDS + 0.02)

    assert store.reap() == ()
    assert waiting_messages(redis) == ["job_0", "job_1", "job_2"]


def test_a_message_lost_behind_others_is_missed_when_later_ones_come_first(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    consume(redis)
    time.sleep(PATIENCE_SECONDS + 0.02)
    store.submit("job_2", REQUEST)
    time.sleep(PATIENCE_SECONDS + 0.02)

    assert store.reap() == ("job_1",)
    assert waiting_messages(redis) == ["job_2", "job_1"]


def test_an_ended_job_is_never_woken(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    store.submit("job_2", REQUEST)
    consume(redis)
    consume(redis)
    store.cancel("job_1")
    claim = store.claim("job_2", WorkerSlot(worker_id="w1", host="h"), lease_seconds=0.01)
    assert claim is not None
    store.settle(claim, Stopped())
    time.sleep(PATIENCE_SECONDS + 0.02)

    assert store.reap() == ()


def test_a_refused_submit_leaves_nothing_behind(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST, target="/data/b")
    keys = set(redis.scan_iter())

    with pytest.raises(Exception, match="job_1"):
        store.submit("job_2", REQUEST, target="/data/b", idempotency_key="k")

    assert set(redis.scan_iter()) == keys
    assert waiting_messages(redis) == ["job_1"]


def test_scripts_come_back_after_the_server_forgot_them(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)

    redis.script_flush()

    assert store.get("job_1").id == "job_1"


def test_a_server_that_is_away_is_an_unavailable_store(tmp_path: object) -> None:
    store = RedisStore.from_url(f"redis+socket://{tmp_path}/nobody.sock")

    for ask in (store.ping, lambda: store.list(JobFilter())):
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="job store"):
            ask()
        assert time.monotonic() - started < 3


def test_help_is_asked_for_behind_all_jobs_that_wait(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    consume(redis)
    claim = store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)
    assert claim is not None
    store.invite("job_1")  # nothing to help with
    store.open_parts(claim, "print", 2)

    store.invite("job_1")

    lowest = "ferry.cpu\x06\x166"
    assert [json.loads(message)["headers"]["id"] for message in redis.lrange(lowest, 0, -1)] == ["job_1"]
    assert waiting_messages(redis) == []


def test_nobody_is_asked_for_help_when_all_parts_are_held(store: RedisStore, redis: Redis) -> None:
    store.submit("job_1", REQUEST)
    claim = store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)
    assert claim is not None
    store.open_parts(claim, "print", 1)
    store.take_part("job_1", lease_seconds=60)

    store.invite("job_1")

    assert redis.llen("ferry.cpu\x06\x166") == 0


def test_another_brokers_call_for_help_is_taken_once(redis: Redis) -> None:
    store = RedisStore(redis, sends_messages=False)
    store.submit("job_1", REQUEST)
    store.take_wake_ups()
    claim = store.claim("job_1", WorkerSlot(worker_id="w1", host="h"), lease_seconds=60)
    assert claim is not None
    store.open_parts(claim, "print", 2)

    store.invite("job_1")

    (call,) = store.take_wake_ups()
    assert (call.job_id, call.queue) == ("job_1", "ferry.cpu")
    assert store.take_wake_ups() == ()
