"""Clearing away the partial folders that attempts left beside their targets."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..checkpoints.publish import partial_folders
from ..jobs.errors import FerryError
from ..jobs.locations import Locations
from ..jobs.spec import target_of
from ..jobs.state import Job, Running
from ..jobs.store import Claim, Unclean


def target_path(job: Job, locations: Locations) -> Path | None:
    """Where the job's output goes, if it leaves any. BadInputError where this worker may not write there."""
    location = target_of(job.request.spec)
    return None if location is None else locations.resolve_target(location)


def clear_lost_attempts(job: Job, locations: Locations) -> None:
    """Remove what all attempts but a running one left. They were fenced off: none of them can publish any more."""
    last = job.attempts - 1 if isinstance(job.state, Running) else job.attempts
    _clear(job, locations, lambda fence: fence <= last)


def clear_unclean(unclean: Unclean, locations: Locations) -> bool:
    """Remove what lost attempts left; False where this worker cannot see their place."""
    try:
        target_path(unclean.job, locations)
    except FerryError:
        return False
    _clear(unclean.job, locations, lambda fence: fence <= unclean.fence)
    return True


def clear_attempt(claim: Claim, locations: Locations) -> None:
    """Remove what this attempt left; nobody else uses its number."""
    _clear(claim.job, locations, lambda fence: fence == claim.fence)


def _clear(job: Job, locations: Locations, which: Callable[[int], bool]) -> None:
    try:
        target = target_path(job, locations)
    except FerryError:
        return  # Another worker's root: nothing of it is here.
    for folder in partial_folders(target, job.id) if target else ():
        fence, _, gone = folder.name.rpartition(f"{job.id}-")[2].partition("-")
        if fence.isdecimal() and which(int(fence)):
            _remove(folder if gone else folder.with_name(f"{folder.name}-gone"), folder)


def _remove(gone: Path, folder: Path) -> None:
    """Rename first: an attempt that froze just before it published must find nothing, rather than half of its files."""
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
