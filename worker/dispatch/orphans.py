"""The last net under an attempt's processes: whose worker is gone without having ended them, ends here."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from .attempt import ATTEMPT_OF
from .birth import lives

log = logging.getLogger(__name__)


def end_orphans() -> None:
    """SIGKILL to what attempts started whose pool process no longer lives, on this host and of this user."""
    for process in _orphans():
        with suppress(psutil.Error):
            process.kill()
            log.warning("orphan_ended pid=%d", process.pid)


def _orphans() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        owner = _owner(process.pid)
        if owner and lives(owner) is False:
            yield process


def _owner(pid: int) -> str:
    """The mark in what the process was started with; empty for one without, or of another user."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == ATTEMPT_OF.encode():
                return value.decode(errors="replace")
    return ""
