"""Clearing away the partial folders that attempts left beside their targets."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..checkpoints.publish import partial_folders
from ..engine.journal import Known, read_journal
from ..jobs.errors import FerryError
from ..jobs.locations import Locations
from ..jobs.spec import target_of
from ..jobs.state import Job
from ..jobs.store import Claim, Unclean

_GONE = "-gone"
_WORTH_KEEPING_BYTES = 2**20
"""Less is written again sooner than it is looked for."""


def target_path(job: Job, locations: Locations) -> Path | None:
    """Where the job's output goes, if it leaves any. BadInputError where this worker may not write there."""
    location = target_of(job.request.spec)
    return None if location is None else locations.resolve_target(location)


def earlier_folders(target: Path, claim: Claim) -> tuple[Path, ...]:
    """What earlier attempts of the job left, the latest first. They were fenced off: none of them can publish."""
    fences = {folder: _fence(folder, claim.job.id) for folder in partial_folders(target, claim.job.id)}
    found = [(fence, folder) for folder, fence in fences.items() if fence is not None and fence < claim.fence]
    return tuple(folder for _, folder in sorted(found, reverse=True))


def holds_parts(claim: Claim, locations: Locations) -> bool:
    """Whether an attempt at the job, this or an earlier one, left parts that a later one need not write again."""
    target = target_path(claim.job, locations)
    known = map(read_journal, partial_folders(target, claim.job.id)) if target else ()
    return any(journal is not None and _bytes(journal) >= _WORTH_KEEPING_BYTES for journal in known)


def _bytes(journal: Known) -> int:
    return sum(segment.length for segments in journal.done.values() for segment in segments)


def clear_unclean(unclean: Unclean, locations: Locations) -> bool:
    """Remove what attempts left that nobody goes on with; False where this worker cannot see their place."""
    try:
        target_path(unclean.job, locations)
    except FerryError:
        return False
    _clear(unclean.job, locations, lambda fence: fence <= unclean.fence)
    return True


def clear_attempts(claim: Claim, locations: Locations) -> None:
    """Remove what this attempt and those before it left; nobody else uses their numbers."""
    _clear(claim.job, locations, lambda fence: fence <= claim.fence)


def _clear(job: Job, locations: Locations, which: Callable[[int], bool]) -> None:
    try:
        target = target_path(job, locations)
    except FerryError:
        return  # Another worker's root: nothing of it is here.
    for folder in partial_folders(target, job.id) if target else ():
        gone = folder.name.endswith(_GONE)
        fence = _fence(folder.with_name(folder.name.removesuffix(_GONE)), job.id)
        if fence is not None and which(fence):
            _remove(folder if gone else folder.with_name(f"{folder.name}{_GONE}"), folder)


def _fence(folder: Path, job_id: str) -> int | None:
    """The attempt that a folder belongs to; None for one that is on its way out."""
    fence = folder.name.rpartition(f"{job_id}-")[2]
    return int(fence) if fence.isdecimal() else None


def _remove(gone: Path, folder: Path) -> None:
    """Rename first: an attempt that froze just before it published must find nothing, rather than half of its files."""
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
