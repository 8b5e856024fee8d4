"""The bell in every worker of a service on RabbitMQ: it sends the messages that the store cannot send itself."""

import json
import logging
import threading
import time
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import kombu

from ..jobs.errors import FerryError
from ..jobs.store import JobStore, WakeUp
from ..stores.celery_message import JOB, QUEUE, STEP, TAG, wake_up_template
from .app import queue
from .celery_broker import CeleryBroker

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 0.2
_LOOK_EVERY = 5
"""Rounds between two looks at which queues are empty."""
_CONFIRM_SECONDS = 10.0
_HEARTBEAT_SECONDS = 10
_AGAIN_SECONDS = 1.0

_kombu: Any = kombu  # It ships no types.


class Bell:
    """Sends what the store has ready, in a thread of this process, for as long as it lives.

    A message that the store counts as sent is kept here until RabbitMQ has confirmed it. If this process dies before
    that, the reaper finds the message's queue empty and has it sent anew.
    """

    def __init__(self, store: JobStore, broker: CeleryBroker, queues: Sequence[str]) -> None:
        self._store = store
        self._broker = broker
        self._queues = queues
        self._unsent: list[WakeUp] = []
        self._empty: frozenset[str] = frozenset()

    def start(self) -> None:
        """Ring until the process ends."""
        threading.Thread(target=self._ring_forever, name="bell", daemon=True).start()

    @property
    def empty_queues(self) -> Collection[str]:
        """The worker's queues that held no message a second ago; none while RabbitMQ cannot be reached."""
        return self._empty

    def _ring_forever(self) -> NoReturn:
        while True:
            try:
                self._ring_while_connected()
            except Exception as error:  # Whatever it was, a worker without a bell would leave jobs asleep.
                log.warning("bell_paused error=%r", error)
            self._empty = frozenset()
            time.sleep(_AGAIN_SECONDS)

    def _ring_while_connected(self) -> None:
        with _connected(self._broker) as connection:
            log.info("bell_connected")
            rounds = 0
            while True:
                self._send_all(connection)
                if rounds % _LOOK_EVERY == 0:
                    self._empty = _empty_among(self._queues, connection)
                rounds += 1
                _wait(connection)

    def _send_all(self, connection: Any) -> None:
        self._unsent = self._unsent or self._taken()
        with _kombu.Producer(connection) as producer:
            while self._unsent:
                send(producer, self._unsent[0])
                del self._unsent[0]

    def _taken(self) -> list[WakeUp]:
        try:
            return list(self._store.take_wake_ups())
        except FerryError as error:
            log.warning("bell_without_store error=%s", error)
            return []


def send(producer: Any, wake_up: WakeUp) -> None:
    """Returns when RabbitMQ has the message on its disk."""
    message = _message(wake_up)
    producer.publish(
        message["body"],
        content_type=message["content-type"],
        content_encoding=message["content-encoding"],
        headers=message["headers"],
        correlation_id=wake_up.job_id,
        exchange="",
        routing_key=wake_up.queue,
        priority=wake_up.priority,
        delivery_mode=2,
        declare=[queue(wake_up.queue)],  # RabbitMQ drops what no queue takes.
        confirm_timeout=_CONFIRM_SECONDS,
    )


def _message(wake_up: WakeUp) -> dict[str, Any]:
    """The same as the store's scripts send on Redis."""
    filled = {JOB: wake_up.job_id, QUEUE: wake_up.queue, TAG: "", f'"{STEP}"': str(wake_up.priority)}
    text = wake_up_template()
    for place, value in filled.items():
        text = text.replace(place, value)
    return json.loads(text)


@contextmanager
def _connected(broker: CeleryBroker) -> Generator[Any]:
    connection = _kombu.Connection(
        broker.url,
        ssl=dict(broker.use_ssl) if broker.use_ssl else False,
        transport_options=dict(broker.transport_options),
        heartbeat=_HEARTBEAT_SECONDS,
    )
    try:
        connection.connect()
        yield connection
    finally:
        connection.collect()  # Closes the socket, and waits for no answer of a server that may be gone.


def _empty_among(queues: Sequence[str], connection: Any) -> frozenset[str]:
    with connection.channel() as channel:
        declared = ((name, queue(name)(channel).queue_declare()) for name in queues)
        return frozenset(name for name, (_, messages, _) in declared if messages == 0)


def _wait(connection: Any) -> None:
    """Until the next round; meanwhile what RabbitMQ says of the connection is read."""
    connection.heartbeat_check()
    try:
        connection.drain_events(timeout=_INTERVAL_SECONDS)
    except TimeoutError:
        return
