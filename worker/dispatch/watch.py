"""Watching an attempt: its progress goes to the store, the store's verdict decides whether it may go on."""

import logging
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

from ..jobs.state import Progress
from ..jobs.waiting import WaitsForDisk
from .attempt import Attempt
from .attempt_lines import End, Helped, Moved, Needs, Sees
from .lease import Lease
from .memory import AttemptMemory

log = logging.getLogger(__name__)

_LISTEN_SECONDS = 0.1
_BEAT_SECONDS = 0.25
"""Progress is seen, and a cancel heard, at least twice a second."""


@dataclass(frozen=True, slots=True)
class Died:
    """It ended without a word: killed, or crashed in a way that Python cannot catch."""

    exit_code: int


Told = Literal["cancel", "fenced", "leaving", "timed_out", "stalled", "out_of_memory"]
"""Why a running attempt must stop: the user asked; the job is another's; this worker goes away; it takes longer than it
may; it makes no progress; it holds more memory than it may."""


@dataclass(slots=True)
class Patience:
    """How long an attempt may take, and how long it may live without progress; its lease is another matter."""

    timeout_seconds: float | None
    stall_seconds: float | None
    _started: float = field(default_factory=time.monotonic, init=False)
    _moved: float = field(default_factory=time.monotonic, init=False)

    def moved(self) -> None:
        """It made progress just now."""
        self._moved = time.monotonic()

    def verdict(self) -> Literal["timed_out", "stalled"] | None:
        """What it has run out of, if anything."""
        now = time.monotonic()
        if self.timeout_seconds is not None and now - self._started > self.timeout_seconds:
            return "timed_out"
        if self.stall_seconds is not None and now - self._moved > self.stall_seconds:
            return "stalled"
        return None


def watch(
    attempt: Attempt, lease: Lease, leaving: Callable[[], bool], patience: Patience, memory: AttemptMemory
) -> End | Died | Told | WaitsForDisk:
    """Wait for the attempt's end, or for a reason to end it."""
    progress, next_beat = Progress(), time.monotonic()
    while True:
        code = attempt.exit_code()  # before the last look at the pipe, so that no word is missed
        for line in attempt.lines(wait_seconds=0 if code is not None else _LISTEN_SECONDS):
            match line:
                case Moved(progress=made):
                    if made != progress:
                        patience.moved()
                    progress = made
                case Needs():
                    if waiting := lease.reserve_disk(line):
                        return waiting
                case Sees(devices=devices):
                    log.info("gpus_seen job=%s devices=%s", lease.claim.job.id, ",".join(devices))
                case _:
                    return line
        if code is not None:
            return Died(code)
        if leaving():
            return "leaving"
        if ran_out := patience.verdict():
            return ran_out
        if time.monotonic() >= next_beat:
            if memory.exceeded(attempt.pid):
                return "out_of_memory"
            verdict = lease.renew(progress)
            if verdict != "go_on":
                return verdict
            next_beat = time.monotonic() + min(_BEAT_SECONDS, lease.seconds / 3)


def watch_helper(
    attempt: Attempt, leaving: Callable[[], bool], memory: AttemptMemory
) -> End | Died | Literal["leaving", "out_of_memory"]:
    """Wait for a helper's end, or for a reason to end it; its leases it keeps itself."""
    next_look = time.monotonic()
    while True:
        code = attempt.exit_code()
        for line in attempt.lines(wait_seconds=0 if code is not None else _LISTEN_SECONDS):
            if isinstance(line, Helped):
                return line
        if code is not None:
            return Died(code)
        if leaving():
            return "leaving"
        if time.monotonic() >= next_look:
            if memory.exceeded(attempt.pid):
                return "out_of_memory"
            next_look = time.monotonic() + _BEAT_SECONDS


@contextmanager
def asked_to_leave() -> Generator[Callable[[], bool]]:
    """Whether this pool process was told to end (Celery's way to cancel what runs after its grace), as a question.

    Celery's own handler would raise SystemExit in the middle of whatever runs.
    """
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    numbers = (signal.SIGTERM, signal.SIGQUIT)
    earlier = [signal.signal(number, remember) for number in numbers]
    try:
        yield lambda: asked
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)
