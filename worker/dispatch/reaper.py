"""The safety net that every worker holds: wakes lost jobs, and clears away what lost attempts left."""

import logging
import threading
import time
from typing import NoReturn

from ..jobs.errors import FerryError
from ..jobs.locations import Locations
from ..jobs.store import JobStore
from .partials import clear_lost_attempts

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 1.0


def start_reaper(store: JobStore, locations: Locations) -> None:
    """Reap once a second in a thread of this process, for as long as it lives."""
    threading.Thread(target=_reap_forever, args=(store, locations), name="reaper", daemon=True).start()


def reap(store: JobStore, locations: Locations) -> None:
    """One round. What a lost attempt left goes before anyone else starts."""
    for job_id in store.reap():
        job = store.get(job_id)
        log.info("job_reaped job=%s state=%s", job_id, job.state.state)
        clear_lost_attempts(job, locations)


def _reap_forever(store: JobStore, locations: Locations) -> NoReturn:
    while True:
        time.sleep(_INTERVAL_SECONDS)
        try:
            reap(store, locations)
        except FerryError as error:
            log.warning("reaper_paused error=%s", error)
        except Exception:
            log.exception("reaper_failed")
