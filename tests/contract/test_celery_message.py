"""The wake-up message against kombu and Celery themselves: the same envelope, and readable by their consumers."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Queue
from redis import Redis

from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.jobs.spec import ConfigSpec, JobRequest
from worker.stores.celery_message import TASK
from worker.stores.connection import connect
from worker.stores.redis_store import RedisStore

QUEUE = "ferry.cpu"
NORMAL = f"{QUEUE}\x06\x163"
"""Kombu's list for messages of this queue with priority 3."""


@pytest.fixture
def redis(broker: EmbeddedBroker) -> Iterator[Redis]:
    with connect(broker.url) as client:
        yield client


def sent_by_celery(broker: EmbeddedBroker, redis: Redis) -> dict[str, Any]:
    app = Celery(broker=broker.url, set_as_current=False)
    app.conf.update(task_default_queue=QUEUE, task_serializer="json", task_ignore_result=True)
    app.send_task(TASK, args=("job_1",), task_id="job_1", ignore_result=True, priority=3)
    app.close()
    return json.loads(redis.rpop(NORMAL))


def sent_by_store(broker: EmbeddedBroker, redis: Redis, job_id: str = "job_1") -> dict[str, Any]:
    RedisStore(redis).submit(job_id, JobRequest(spec=ConfigSpec(source="here:a")))
    return json.loads(redis.lindex(NORMAL, 0))


def test_the_envelope_is_that_of_celery(broker: EmbeddedBroker, redis: Redis) -> None:
    theirs, ours = sent_by_celery(broker, redis), sent_by_store(broker, redis)

    for message in (theirs, ours):
        assert message["headers"].pop("origin")  # names the sender
        assert message["properties"].pop("delivery_tag")  # differs from message to message
        message["properties"].pop("reply_to")  # where results would go; none are sent
    body, encoding = theirs.pop("body"), theirs["properties"].pop("body_encoding")
    assert encoding == "base64"
    assert json.loads(ours.pop("body")) == json.loads(base64.b64decode(body))
    assert ours == theirs


def test_kombu_consumes_and_acknowledges_it(broker: EmbeddedBroker, redis: Redis) -> None:
    sent_by_store(broker, redis)

    with Connection(broker.url) as connection, connection.SimpleQueue(Queue(QUEUE)) as queue:
        message = queue.get(timeout=5)
        assert message.decode()[0] == ["job_1"]
        assert redis.hlen("unacked") == 1
        message.ack()

    assert redis.hlen("unacked") == redis.llen(NORMAL) == 0


def test_kombu_returns_it_to_the_queue_unharmed(broker: EmbeddedBroker, redis: Redis) -> None:
    sent_by_store(broker, redis)

    with Connection(broker.url) as connection, connection.SimpleQueue(Queue(QUEUE)) as queue:
        queue.get(timeout=5).requeue()
        message = queue.get(timeout=5)
        assert message.decode()[0] == ["job_1"]
        message.ack()


def test_each_message_has_a_tag_of_its_own(broker: EmbeddedBroker, redis: Redis) -> None:
    tags = {
        sent_by_store(broker, redis, job_id)["properties"]["delivery_tag"] for job_id in ("job_1", "job_2", "job_3")
    }

    assert len(tags) == 3
