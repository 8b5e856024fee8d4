"""One long-running process of a service: started, restarted with growing pauses, stopped in good order."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..jobs.errors import TransientError

Start = Callable[[], "subprocess.Popen[bytes]"]

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_GOOD_LIFE_SECONDS = 30.0
"""After a life this long, the next restart is without a pause again."""


@dataclass(slots=True)
class Service:
    """Keeps what `start` starts alive."""

    name: str
    start: Start
    say: Callable[[str], None]
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _started: float = field(default=0.0, init=False)
    _pause_seconds: float = field(default=_FIRST_PAUSE_SECONDS, init=False)

    def keep(self) -> None:
        """Start it, or start it again if it has ended and its pause is over. Call often."""
        if self._process is None:
            self._launch()
        elif (code := self._process.poll()) is not None:
            self._restart(code)

    def ask_to_stop(self) -> None:
        """SIGTERM; `wait_stopped` makes sure."""
        self._signal(signal.SIGTERM)

    def wait_stopped(self, seconds: float) -> None:
        """Wait for its end, then insist. Whatever it started is tied to it, and ends with it."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.say(f"{self.name} did not stop within {seconds:.0f} s; killing it.")
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _launch(self) -> None:
        self._started = time.monotonic()
        self._process = self.start()

    def _restart(self, code: int) -> None:
        life = time.monotonic() - self._started
        if life > _GOOD_LIFE_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        if life < self._pause_seconds:
            return
        self.say(f"{self.name} ended ({_how(code)}); starting it again.")
        self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
        try:
            self._launch()
        except TransientError as error:
            self.say(f"{self.name} cannot be started yet: {error}")

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
