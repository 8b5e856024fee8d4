"""The one table of faults, and who strikes: what is killed, frozen, filled or cut, and what mends itself later."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import psutil
from redis.exceptions import RedisError

from .disk import Disk
from .stack import LEASE_SECONDS, Role, Stack, beneath
from .targets import TargetWatch

_SIGHT_SECONDS = 2.0
"""How long a fault waits for something to strike."""


@dataclass(slots=True)
class Ground:
    """What faults strike, and what they leave to be mended."""

    stack: Stack
    disk: Disk | None
    """None where this user may not mount one."""
    watch: TargetWatch
    chance: Random
    frozen: list[tuple[float, list[psutil.Process]]] = field(default_factory=list[tuple[float, list[psutil.Process]]])
    """With the time of their thaw."""
    full_until: float = 0.0

    def some(self, role: Role) -> psutil.Process | None:
        """One process that plays the part, at a random moment of its life; None where there is none in time."""
        self.wait(self.chance.uniform(0, 0.4))
        deadline = time.monotonic() + _SIGHT_SECONDS
        while time.monotonic() < deadline:
            if found := self.stack.find(role):
                return self.chance.choice(found)
            self.wait(0.05)
        return None

    def wait(self, seconds: float) -> None:
        """Sleep, and mend what is due."""
        self.keep()
        time.sleep(seconds)

    def keep(self) -> None:
        """Thaw what was frozen long enough, free the disk; call it often."""
        now = time.monotonic()
        for thaw_at, processes in self.frozen:
            if thaw_at <= now:
                _signal(processes, signal.SIGCONT)
        self.frozen = [(thaw_at, processes) for thaw_at, processes in self.frozen if thaw_at > now]
        if self.disk is not None:
            if now < self.full_until:
                self.disk.fill()
            else:
                self.disk.free()

    def mend(self) -> None:
        """Everything, now."""
        self.full_until = 0.0
        self.frozen = [(0.0, processes) for _, processes in self.frozen]
        self.keep()


Strike = Callable[[Ground], bool]
"""Answers whether there was anything to strike."""


def _kill(role: Role) -> Strike:
    def strike(ground: Ground) -> bool:
        victim = ground.some(role)
        return victim is not None and _signal([victim], signal.SIGKILL)

    return strike


def _kill_worker_tree(ground: Ground) -> bool:
    worker = ground.some("worker")
    return worker is not None and _signal(_tree(worker), signal.SIGKILL)


def _drain_worker(ground: Ground) -> bool:
    worker = ground.some("worker")
    return worker is not None and _signal([worker], signal.SIGTERM)


def _freeze_worker(ground: Ground) -> bool:
    """The worker and its pool process; the attempt works on, and nobody watches it."""
    worker = _unfrozen_worker(ground)
    return worker is not None and _freeze(ground, [worker, *beneath(worker)["pool"]])


def _freeze_worker_tree(ground: Ground) -> bool:
    worker = _unfrozen_worker(ground)
    return worker is not None and _freeze(ground, _tree(worker))


def _kill_publisher(ground: Ground) -> bool:
    """All pool processes as soon as a target appears: with luck, before the one that put it there has said so."""
    pools = ground.stack.find("pool")
    ground.watch.at_next = lambda: _kill_at_once(pools)
    deadline = time.monotonic() + 2 * _SIGHT_SECONDS
    while ground.watch.at_next is not None and time.monotonic() < deadline:
        ground.wait(0.05)
    struck, ground.watch.at_next = ground.watch.at_next is None, None
    return struck


def _kill_at_once(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _fill_disk(ground: Ground) -> bool:
    if ground.disk is None or ground.full_until > time.monotonic():
        return False
    ground.full_until = time.monotonic() + ground.chance.uniform(1, 4)
    ground.keep()
    return True


def _cut_connections(ground: Ground) -> bool:
    try:
        with ground.stack.broker() as broker:
            broker.execute_command("CLIENT", "KILL", "TYPE", "normal")
    except RedisError:
        return False
    return True


FAULTS: dict[str, Strike] = {
    "kill attempt": _kill("attempt"),
    "kill copy process": _kill("copier"),
    "kill pool process": _kill("pool"),
    "kill publisher": _kill_publisher,
    "kill worker": _kill("worker"),
    "kill worker tree": _kill_worker_tree,
    "kill API": _kill("api"),
    "kill broker": _kill("broker"),
    "kill model-configs": _kill("warm"),
    "freeze worker": _freeze_worker,
    "freeze worker tree": _freeze_worker_tree,
    "drain worker": _drain_worker,
    "fill disk": _fill_disk,
    "cut connections": _cut_connections,
}


@dataclass(slots=True)
class Striker:
    """Chooses among the named faults at random, each as likely as any other."""

    ground: Ground
    names: Sequence[str] = tuple(FAULTS)
    done: Counter[str] = field(default_factory=Counter[str])
    without_victim: Counter[str] = field(default_factory=Counter[str])
    log: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    def strike(self) -> None:
        """One fault, if it meets anything."""
        name = self.ground.chance.choice(self.names)
        if FAULTS[name](self.ground):
            self.done[name] += 1
            self.log.append((time.time(), name))
        else:
            self.without_victim[name] += 1


def _unfrozen_worker(ground: Ground) -> psutil.Process | None:
    """One that may be frozen so that another goes on working."""
    frozen = {process.pid for _, processes in ground.frozen for process in processes}
    free = [worker for worker in ground.stack.find("worker") if worker.pid not in frozen]
    return ground.chance.choice(free) if len(free) > 1 else None


def _freeze(ground: Ground, processes: list[psutil.Process]) -> bool:
    thaw_at = time.monotonic() + LEASE_SECONDS + ground.chance.uniform(0.5, 4)
    ground.frozen.append((thaw_at, processes))
    return _signal(processes, signal.SIGSTOP)


def _tree(worker: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [worker, *worker.children(recursive=True)]
    return [worker]


def _signal(processes: list[psutil.Process], number: int) -> bool:
    """Whether the first of them was there to take it."""
    taken: list[bool] = []
    for process in processes:
        try:
            process.send_signal(number)
            taken.append(True)
        except psutil.Error:
            taken.append(False)
    return taken[:1] == [True]
