"""The safety net that every worker holds: wakes lost jobs, clears away what lost attempts left, says who is alive."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import NoReturn

from ..jobs.errors import FerryError
from ..jobs.locations import Locations
from ..jobs.slots import WorkerSlot
from ..jobs.store import JobStore
from .orphans import end_orphans
from .partials import clear_unclean

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0
_ALIVE_SECONDS = 10.0
"""A slot that said nothing for so long does not count any more."""

_ORPHANS_EVERY = 10
"""Rounds; there should be none, and looking at every process of a host costs some."""

EmptyQueues = Callable[[], Collection[str] | None]


def start_reaper(
    store: JobStore, locations: Locations, slot: WorkerSlot, empty_queues: EmptyQueues = lambda: None
) -> None:
    """Announce the slot and reap, once a second in a thread of this process, for as long as it lives.

    `empty_queues` answers what a broker that is not the store's own server says of its queues.
    """
    given = (store, locations, slot, empty_queues)
    threading.Thread(target=_reap_forever, args=given, name="reaper", daemon=True).start()


def reap(store: JobStore, locations: Locations, empty_queues: Collection[str] | None = None) -> None:
    """One round. Whoever claims a job clears away what its lost attempts left; what nobody claims is cleared here."""
    for job_id in store.reap(empty_queues=empty_queues):
        log.info("job_reaped job=%s", job_id)
    for unclean in store.unclean():
        if clear_unclean(unclean, locations):
            store.cleaned(unclean)


def _reap_forever(store: JobStore, locations: Locations, slot: WorkerSlot, empty_queues: EmptyQueues) -> NoReturn:
    rounds = 0
    while True:
        try:
            if rounds % _ORPHANS_EVERY == 0:
                end_orphans()
            store.announce(slot, seconds=_ALIVE_SECONDS)
            reap(store, locations, empty_queues())
        except FerryError as error:
            log.warning("reaper_paused error=%s", error)
        except Exception:
            log.exception("reaper_failed")
        rounds += 1
        time.sleep(_INTERVAL_SECONDS)
