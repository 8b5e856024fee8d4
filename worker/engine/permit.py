"""The time until which a process and its children may write; a frozen one that wakes up later finds it over."""

import mmap
import struct
import time
from dataclasses import dataclass, field

from ..jobs.errors import TransientError

_TIME = struct.Struct("<d")


@dataclass(slots=True)
class Permit:
    """Shared with forked processes. Checked after the bytes were read and before they are written: whatever is written
    late was read in time, and is what everybody else writes there."""

    _memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, _TIME.size))

    def __post_init__(self) -> None:
        self.extend(float("inf"))

    def extend(self, until: float) -> None:
        """On the clock of `now`."""
        _TIME.pack_into(self._memory, 0, until)

    def check(self) -> None:
        """TransientError where the time is over."""
        if now() > _TIME.unpack_from(self._memory)[0]:
            raise TransientError(
                "attempt_lost",
                "this attempt's right to write",
                found="its end: it was not renewed in time",
                expected="a heartbeat that reaches the job store",
                next_step="Another worker goes on; if that repeats, look at the store and at this host's load.",
            )


def now() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
