"""Helping with a job that another worker runs: its plan is made again, and some of its parts are written."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from ..checkpoints.publish import partial_folder
from ..engine.journal import read_journal
from ..engine.processes import Copy, CopyOptions, do_parts
from ..handlers.conversion import Conversion, fingerprint
from ..handlers.run import conversion_of
from ..jobs.errors import FerryError
from ..jobs.spec import ConversionSpec
from ..jobs.state import Job
from ..jobs.store import JobStore
from ..settings import WorkerSettings
from .attempt_lines import Helped, encode
from .part_board import HelpersParts, fenced
from .root_rules import RootRules

log = logging.getLogger(__name__)

_HELP_SECONDS = 60.0
"""Then a helper looks for a job of its own first."""


def help_out(job: Job, settings: WorkerSettings, connect: Callable[[], JobStore], telling: int) -> None:
    """Write parts of the job while there are any, and tell how many on the descriptor `telling`."""
    try:
        helped = _help_out(job, settings, connect())
    except FerryError as error:
        log.info("help_ended job=%s why=%s", job.id, error)
        helped = Helped(parts=0, more=False)
    os.write(telling, encode(helped))


def _help_out(job: Job, settings: WorkerSettings, store: JobStore) -> Helped:
    spec = job.request.spec
    opened = store.parts(job.id)
    if opened is None or not isinstance(spec, ConversionSpec):
        return Helped(parts=0, more=False)
    conversion = conversion_of(spec, settings.locations)
    folder = _folder(conversion, job, f"{fingerprint(conversion, spec)}:", opened.fingerprint)
    log.info("help_began job=%s", job.id)
    queue = HelpersParts.of(store, job.id, job.attempts, settings.lease_seconds, _HELP_SECONDS)
    options = CopyOptions(
        processes=settings.copy_processes,
        limits=RootRules(settings).io_limits(conversion.source, conversion.target),
        permit=queue.permit,
    )
    do_parts(conversion.parts, queue, Copy(folder, sync_parts=True), options, lambda _: None)
    return Helped(parts=queue.helped, more=queue.time_is_up)


def _folder(conversion: Conversion, job: Job, expected: str, opened: str) -> Path:
    """Where the job's attempt writes. TransientError where this host sees another plan, or another folder."""
    folder = partial_folder(conversion.target, f"{job.id}-{job.attempts}")
    known = read_journal(folder)
    if known is None or known.fingerprint != opened or not opened.startswith(expected):
        raise fenced(job.id)
    return folder
