"""One try at a job, in a forked process of its own: memory comes back, cancel is a signal, a crash is an error."""

import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

import psutil

from ..lifeline import die_with_parent
from ..settings import mark_children
from .attempt_lines import Word, decode
from .birth import born
from .memory import AttemptMemory

Work = Callable[[int], None]
"""What the process does: tells its progress and its end on a descriptor."""

log = logging.getLogger(__name__)

ATTEMPT_OF = "FERRY_ATTEMPT_OF"
"""In the environment of what an attempt starts: the birth of the process that answers for it."""

_KILL_SECONDS = 4.0
"""A killed process ends at once, unless it waits for a disk or a network that does not answer."""


@dataclass(slots=True)
class Attempt:
    """A running attempt, seen from the process that forked it."""

    pid: int
    _pipe: int
    _pidfd: int | None
    """Tells of its end at once; without, where the kernel has none, a look now and then finds it."""
    _others: frozenset[int]
    """Children that the forking process had before: none of ours."""
    _memory: AttemptMemory
    _unread: bytes = field(default=b"", init=False)

    def lines(self, *, wait_seconds: float) -> list[Word]:
        """What it told since the last call; waits a while for the first word, or for its end."""
        poll = select.poll()
        for descriptor in (self._pipe, self._pidfd):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        poll.poll(wait_seconds * 1000)
        *lines, self._unread = (self._unread + _read_available(self._pipe)).split(b"\n")
        return [decode(line) for line in lines]

    def exit_code(self) -> int | None:
        """Minus the signal that killed it, or its exit code; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def close(self) -> None:
        """Leave nothing of it: neither the process, nor its descendants, nor descriptors."""
        kill_descendants(sparing=self._others)
        self._memory.end()
        os.close(self._pipe)
        if self._pidfd is not None:
            os.close(self._pidfd)


def start_attempt(work: Work, memory: AttemptMemory | None = None) -> Attempt:
    """Fork a process that does `work`. The caller must be single-threaded, and free of CUDA."""
    memory = memory or AttemptMemory(None, None)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    parent = os.getpid()
    others = frozenset(child.pid for child in psutil.Process().children())
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _live(work, writing, parent, memory)
    os.close(writing)
    return Attempt(pid, reading, _pidfd(pid), others, memory)


def _pidfd(pid: int) -> int | None:
    with suppress(OSError):
        return os.pidfd_open(pid)
    return None


def kill_descendants(*, sparing: Collection[int] = ()) -> None:
    """SIGKILL to the children of this process but some, and to all that those started, until none is left.

    A process that calls `adopt_orphans` also finds those here whose parent ended before them.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    while children := [child for child in psutil.Process().children() if child.pid not in sparing]:
        for child in children:
            _kill_tree(child)
        if time.monotonic() > deadline:
            log.error("processes_unkillable pids=%s", [child.pid for child in children])
            return
        time.sleep(0.005)


def _live(work: Work, telling: int, parent: int, memory: AttemptMemory) -> NoReturn:
    """The attempt's process from its first to its last moment. It must never return into its parent's code."""
    code = 1
    try:
        os.setsid()
        die_with_parent(parent)
        mark_children(ATTEMPT_OF, born(parent) or "")
        memory.enter()
        _reset_signals()
        _let_go_of_descriptors(but=telling)
        work(telling)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reset_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _let_go_of_descriptors(*, but: int) -> None:
    """Sever what the parent shares: broker and store sockets, pool pipes.

    Put /dev/null in their place. Were they closed, their numbers would be given to this process's files, which the
    garbage collection of an inherited socket object could then close.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in (but, nothing):
            os.dup2(nothing, descriptor, inheritable=False)


def _read_available(descriptor: int) -> bytes:
    pieces: list[bytes] = []
    with suppress(BlockingIOError):
        while piece := os.read(descriptor, 2**16):
            pieces.append(piece)
    return b"".join(pieces)


def _kill_tree(child: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess, ChildProcessError):
        for process in (*child.children(recursive=True), child):
            process.kill()
        os.waitpid(child.pid, os.WNOHANG)
