"""`python -m worker work`: one Celery worker with one slot, its reaper and its warm process."""

import argparse
import logging
import os
import secrets
import socket
import sys
from typing import Any

from ..engine.lifeline import adopt_orphans, die_with_parent
from ..jobs.errors import FerryError
from ..jobs.locations import Roots
from ..settings import WorkerSettings, stop_softly_on_sigterm
from ..stores.redis_store import RedisStore
from .embedded_broker import embedded_url
from .reaper import start_reaper
from .slot import Slot
from .sockets import socket_path
from .warm import keep_warm


def main(argv: list[str]) -> int:
    """Work until told to stop; answers the exit code."""
    argparse.ArgumentParser(prog="python -m worker work", description=__doc__).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = WorkerSettings.from_environment()
        return _work(_slot(settings), settings.broker_url or embedded_url(settings.data))
    except FerryError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _slot(settings: WorkerSettings) -> Slot:
    return Slot(
        store=RedisStore.from_url(settings.broker_url or embedded_url(settings.data)),
        settings=settings,
        worker_id=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
        model_configs=settings.model_configs or socket_path(settings.data, f"model-configs-{os.getpid()}.sock"),
    )


def _work(slot: Slot, broker_url: str) -> int:
    stop_softly_on_sigterm()
    from .app import create_app

    app: Any = create_app(broker_url, slot.run_job, grace_seconds=slot.settings.grace_seconds)
    _connect_signals(slot, broker_url)
    worker = app.Worker(
        pool="prefork",
        hostname=slot.worker_id,
        loglevel="INFO",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    if slot.settings.model_configs is None:
        slot.model_configs.unlink(missing_ok=True)
    return worker.exitcode


def _connect_signals(slot: Slot, broker_url: str) -> None:
    import celery.signals

    signals: Any = celery.signals  # Celery ships no types.
    main_process = os.getpid()

    def tie_pool_process(**_: Any) -> None:
        die_with_parent(main_process)
        adopt_orphans()

    def start_helpers(**_: Any) -> None:
        if slot.settings.model_configs is None:
            keep_warm(slot.model_configs)
        # A store of its own: the slot's must be untouched when the pool process is forked.
        start_reaper(RedisStore.from_url(broker_url), Roots(slot.settings.roots))

    signals.worker_process_init.connect(tie_pool_process, weak=False)
    signals.worker_ready.connect(start_helpers, weak=False)
