"""How a slot takes messages from RabbitMQ: it listens while it is idle, and hangs up before it starts a job.

RabbitMQ brings a listener its next message as soon as the last one is acknowledged, and a message must be acknowledged
early: after 30 minutes without it (`consumer_timeout`) RabbitMQ closes the channel. So the slot stops listening first,
and acknowledges then. In between no message can come, since it asked for one at a time. RabbitMQ 4 counts that for each
queue, not for all: what another queue brings in that moment goes back to it.
"""

from typing import Any

from celery import bootsteps
from celery.app import amqp
from celery.worker import state
from kombu import messaging

_LOOK_SECONDS = 0.05

# Celery and kombu ship no types.
_Consumer: Any = messaging.Consumer
_Step: Any = bootsteps.StartStopStep
_Amqp: Any = amqp.AMQP
_state: Any = state


class IdleConsumer(_Consumer):
    """Celery's task consumer, which asks for messages only while the slot has nothing to do."""

    _has_message = False

    @property
    def is_listening(self) -> bool:
        return bool(self._active_tags)

    def consume(self, no_ack: Any = None) -> None:
        """Listen, unless a job runs: Celery asks for it anew after each reconnect. Asking twice changes nothing."""
        if not _state.reserved_requests:
            self._has_message = False
            inherited: Any = super()
            inherited.consume(no_ack)

    def _receive_callback(self, message: Any) -> None:
        if self._has_message:
            self.channel.basic_reject(message.delivery_tag, requeue=True)
            return
        self._has_message = True
        self.cancel()
        inherited: Any = super()
        inherited._receive_callback(message)


class IdleAmqp(_Amqp):
    """Makes Celery use it."""

    Consumer = IdleConsumer


class ListenAgain(_Step):
    """Looks several times a second whether the job is over. It asks the process's own memory, not RabbitMQ."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        self._timer: Any = None
        inherited: Any = super()
        inherited.__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        self._timer = parent.timer.call_repeatedly(_LOOK_SECONDS, _listen, (parent,))

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _listen(parent: Any) -> None:
    if parent.task_consumer is None or parent.task_consumer.is_listening:
        return
    parent.task_consumer.consume()
    # A message may have come in the same TLS record as the answer: no poll would tell of it.
    parent.connection.transport.on_readable(parent.connection.connection, parent.hub)
