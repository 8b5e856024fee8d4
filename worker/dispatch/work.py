"""`python -m worker work`: one Celery worker with one slot, its reaper and its warm process."""

import argparse
import logging
import os
import secrets
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..jobs.errors import FerryError
from ..jobs.queues import queues_for
from ..jobs.slots import WorkerSlot
from ..lifeline import adopt_orphans, die_with_parent
from ..settings import WorkerSettings, see_only, stop_softly_on_sigterm
from ..stores.redis_store import RedisStore
from ..stores.server_check import check_server
from ..stores.servers import Servers
from .embedded_broker import embedded_url
from .gpus import Gpu, pinned
from .memory_group import make_memory_group
from .reaper import start_reaper
from .root_rules import refuse_impossible
from .slot import Slot
from .sockets import socket_path
from .warm import keep_warm

if TYPE_CHECKING:
    from .bell import Bell


def main(argv: list[str]) -> int:
    """Work until told to stop; answers the exit code."""
    argparse.ArgumentParser(prog="python -m worker work", description=__doc__).parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = WorkerSettings.from_environment()
        servers = Servers.of(settings.broker_url or embedded_url(settings.data), settings.store_url)
        refuse_impossible(settings)
        gpu, gpus = pinned(settings.gpu, pretended=settings.pretend_gpus) if settings.gpu else (None, 0)
        see_only([gpu.uuid] if gpu else [])
        check_server(servers)
        return _work(_slot(settings, servers, gpu), settings.host_gpus or gpus, servers)
    except FerryError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _store(servers: Servers, settings: WorkerSettings) -> RedisStore:
    return RedisStore.from_url(
        servers.store_url,
        sends_messages=servers.store_sends_messages,
        retention_seconds=settings.retention_seconds,
        keep_partials_seconds=settings.keep_partials_seconds,
    )


def _slot(settings: WorkerSettings, servers: Servers, gpu: Gpu | None) -> Slot:
    return Slot(
        store=_store(servers, settings),
        settings=settings,
        who=WorkerSlot(
            worker_id=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}",
            host=socket.gethostname(),
            gpu=gpu.uuid if gpu else None,
            gpu_name=gpu.name if gpu else None,
            version=__version__,
        ),
        model_configs=settings.model_configs or socket_path(settings.data, f"model-configs-{os.getpid()}.sock"),
        memory_group=make_memory_group(),
        connect=partial(_store, servers, settings),
    )


def _work(slot: Slot, host_gpus: int, servers: Servers) -> int:
    stop_softly_on_sigterm()
    from .app import create_app
    from .bell import Bell
    from .celery_broker import celery_broker

    broker = celery_broker(servers.broker_url)
    queues = queues_for(host_gpus if slot.who.gpu else 0)
    app: Any = create_app(broker, slot.run_job, queues=queues, grace_seconds=slot.settings.grace_seconds)
    _connect_signals(slot, servers, Bell(_store(servers, slot.settings), broker, queues) if broker.is_rabbit else None)
    worker = app.Worker(
        pool="prefork",
        hostname=slot.who.worker_id,
        loglevel="INFO",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    _go_away(slot)
    if slot.settings.model_configs is None:
        slot.model_configs.unlink(missing_ok=True)
    return worker.exitcode


def _go_away(slot: Slot) -> None:
    """Count no more as a slot; where the store cannot be told, it finds out soon."""
    if slot.memory_group is not None:
        slot.memory_group.remove()
    with suppress(FerryError):
        slot.store.withdraw(slot.who.worker_id)


def _connect_signals(slot: Slot, servers: Servers, bell: "Bell | None") -> None:
    import celery.signals

    signals: Any = celery.signals  # Celery ships no types.
    main_process = os.getpid()

    def tie_pool_process(**_: Any) -> None:
        die_with_parent(main_process)
        adopt_orphans()

    def start_helpers(**_: Any) -> None:
        if slot.settings.model_configs is None:
            keep_warm(slot.model_configs)
        if bell is not None:
            bell.start()
        # A store of its own: the slot's must be untouched when the pool process is forked.
        store = _store(servers, slot.settings)
        start_reaper(store, slot.settings.locations, slot.who, lambda: bell.empty_queues if bell else None)

    signals.worker_process_init.connect(tie_pool_process, weak=False)
    signals.worker_ready.connect(start_helpers, weak=False)
