"""The Celery application: how messages are taken, and nothing about jobs. It loads neither torch nor Megatron."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery
from kombu import entity

from ..stores.celery_message import TASK
from .celery_broker import CeleryBroker

MAX_PRIORITY = 9
"""Of RabbitMQ's queues, which serve the largest number first."""


def create_app(
    broker: CeleryBroker, run_job: Callable[[str], None], *, queues: Sequence[str], grace_seconds: float
) -> Celery:
    """An application with one task. A message is a hint that there is work; the store holds the truth."""
    app = Celery("ferry", broker=broker.url, set_as_current=False)
    untyped: Any = app  # Celery ships no types.
    untyped.conf.update(
        broker_transport_options=dict(broker.transport_options),
        broker_use_ssl=dict(broker.use_ssl) if broker.use_ssl else None,
        task_queues=[queue(name) for name in queues],
        task_default_queue=queues[0],
        # JSON only: a message must not be able to run code.
        task_serializer="json",
        accept_content=["json"],
        # No truth in Celery: results expire, and a lost one turns a good job into a failure.
        task_ignore_result=True,
        result_backend=None,
        worker_concurrency=1,
        # An attempt outlives a restart of the broker; its lease decides.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_soft_shutdown_timeout=grace_seconds,
        # Jobs are cancelled, and workers seen, through the store.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
        worker_hijack_root_logger=False,
        **(_FROM_RABBIT if broker.is_rabbit else _FROM_REDIS),
    )
    if broker.is_rabbit:
        _listen_while_idle(untyped)
    untyped.task(name=TASK, ignore_result=True)(run_job)
    return app


def queue(name: str) -> Any:
    """A queue as every worker declares it. On Redis it is a list for each priority, and needs no declaration."""
    untyped: Any = entity  # Nor does kombu.
    return untyped.Queue(name, routing_key=name, durable=True, queue_arguments={"x-max-priority": MAX_PRIORITY})


_FROM_REDIS: Mapping[str, Any] = {
    # The message stays until the job is settled, also where the process that runs it is killed.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    # A slot takes a message only when it is idle. No prefetch count beside that: kombu 5.7 keeps a message whose
    # acknowledgement failed (the broker was away) in that count, and a count of 1 is then full for ever.
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 0,
}

_FROM_RABBIT: Mapping[str, Any] = {
    # The message goes when the job starts. RabbitMQ closes the channel of who keeps it for 30 minutes; and where it was
    # too early, the reaper has it sent again.
    "task_acks_late": False,
    "task_reject_on_worker_lost": False,
    "worker_prefetch_multiplier": 1,
    "worker_enable_prefetch_count_reduction": False,
}


def _listen_while_idle(app: Any) -> None:
    from .idle_consumer import IdleAmqp, ListenAgain

    app.amqp_cls = IdleAmqp
    app.steps["consumer"].add(ListenAgain)
