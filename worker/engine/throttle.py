"""A limit on bytes per second that many processes keep together, through a file that all of them can open."""

import fcntl
import os
import struct
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_STATE = struct.Struct("<36sd")
"""The host's boot, and when on its clock everything that was booked will have moved."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class IoLimit:
    """Whoever names the same file shares the limit. Its folder must exist, and be of this host."""

    file: Path
    bytes_per_second: float


@dataclass(slots=True)
class Throttle:
    """`wait(n)` sleeps until `n` more bytes may have moved under every limit; without one it returns at once.

    One object a process: a lock on a file is that of the process.
    """

    limits: Sequence[IoLimit]
    _files: list[int] = field(default_factory=list[int], init=False)
    _boot: bytes = field(default=b"", init=False)

    def wait(self, moved: int) -> None:
        if not self.limits:
            return
        self._open()
        until = max(self._book(file, moved / limit.bytes_per_second) for file, limit in self._opened())
        ahead = until - _now()
        if ahead > 0:
            time.sleep(ahead)

    def _open(self) -> None:
        if not self._files:
            self._boot = _BOOT.read_bytes()[:36]
            self._files = [os.open(limit.file, os.O_RDWR | os.O_CREAT, 0o600) for limit in self.limits]

    def _opened(self) -> list[tuple[int, IoLimit]]:
        return list(zip(self._files, self.limits, strict=True))

    def _book(self, file: int, seconds: float) -> float:
        """Take the next free stretch of time; answers its end. What nobody used is not saved up."""
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            text = os.pread(file, _STATE.size, 0)
            boot, booked = _STATE.unpack(text) if len(text) == _STATE.size else (b"", 0.0)
            end = max(_now(), booked if boot == self._boot else 0.0) + seconds
            os.pwrite(file, _STATE.pack(self._boot, end), 0)
            return end
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN)


@contextmanager
def shared_limits(bytes_per_second: float | None) -> Generator[tuple[IoLimit, ...]]:
    """A limit for this process and those that it forks; none for None."""
    if bytes_per_second is None:
        yield ()
        return
    memory = os.memfd_create("io")
    try:
        yield (IoLimit(Path(f"/proc/{os.getpid()}/fd/{memory}"), bytes_per_second),)
    finally:
        os.close(memory)


def _now() -> float:
    """The same in every process of the host, and never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
