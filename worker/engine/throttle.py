"""A limit on bytes per second, kept by one process for its own share."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Throttle:
    """`wait(n)` sleeps until `n` more bytes may have moved; without a limit it returns at once."""

    bytes_per_second: float | None
    _moved: int = 0
    _started: float = field(default_factory=time.monotonic)

    def wait(self, moved: int) -> None:
        if self.bytes_per_second is None:
            return
        self._moved += moved
        ahead = self._moved / self.bytes_per_second - (time.monotonic() - self._started)
        if ahead > 0:
            time.sleep(ahead)
