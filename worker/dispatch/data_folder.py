"""The data folder of a service, held by one service at a time."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..jobs.errors import BadInputError


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A held folder; the hold ends with the process, however it ends."""

    path: Path
    _lock: TextIO

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def say_who(self, url: str) -> None:
        """Leave word for whoever tries to hold it too."""
        self._lock.truncate(0)
        self._lock.write(f"{url} (process {os.getpid()})")
        self._lock.flush()


@contextmanager
def hold(path: Path) -> Generator[DataFolder]:
    """Hold `path`, created where needed. BadInputError names the service that already does."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)  # job specs name what may be private
    (path / "logs").mkdir(exist_ok=True)
    with (path / "service.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise _taken(path, lock.read()) from None
        yield DataFolder(path, lock)


def _taken(path: Path, other: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"data folder {path}",
        found=f"a service that already runs on it: {other}",
        expected="one service on a data folder",
        next_step="Use that one, stop it, or choose another folder with --data.",
    )
