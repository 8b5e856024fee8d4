"""The Celery application: how messages are taken, and nothing about jobs. It loads neither torch nor Megatron."""

from collections.abc import Callable
from typing import Any

from celery import Celery

from ..stores.celery_message import QUEUE, TASK

_DAY_SECONDS = 86_400


def create_app(broker_url: str, run_job: Callable[[str], None], *, grace_seconds: float) -> Celery:
    """An application with one task. A message is a hint that there is work; the store holds the truth."""
    app = Celery("ferry", broker=broker_url, set_as_current=False)
    untyped: Any = app  # Celery ships no types.
    untyped.conf.update(
        task_default_queue=QUEUE,
        # JSON only: a message must not be able to run code.
        task_serializer="json",
        accept_content=["json"],
        # No truth in Celery: results expire, and a lost one turns a good job into a failure.
        task_ignore_result=True,
        result_backend=None,
        # The message stays until the job is settled, also where the process that runs it is killed.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # A slot takes a message only when it is idle. No prefetch count beside that: kombu 5.7 keeps a message whose
        # acknowledgement failed (the broker was away) in that count, and a count of 1 is then full for ever.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=0,
        worker_concurrency=1,
        # An attempt outlives a restart of the broker; its lease decides.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Redelivery is the store's business. A visibility shorter than a job would start it twice.
        broker_transport_options={"visibility_timeout": _DAY_SECONDS, "health_check_interval": 5},
        worker_soft_shutdown_timeout=grace_seconds,
        # Jobs are cancelled, and workers seen, through the store.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_redirect_stdouts=False,
        worker_hijack_root_logger=False,
    )
    untyped.task(name=TASK, ignore_result=True)(run_job)
    return app
