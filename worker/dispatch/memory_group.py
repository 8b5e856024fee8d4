"""A cgroup for a worker's attempts, where this user may make one: it bounds their memory and counts OOM kills.

One a worker rather than one an attempt: the kernel keeps a removed group for as long as a page of the cache is its own.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .birth import born, lives

_PREFIX = "ferry-"
_KILL_SECONDS = 4.0
Version = Literal[1, 2]


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A folder of the cgroup file system."""

    folder: Path
    version: Version

    def limit(self, nbytes: int | None) -> None:
        """Bound the memory of the processes in it, swap included; None takes the bound away. OSError where the kernel
        refuses."""
        for name, text in self._limits(nbytes):
            if (self.folder / name).exists():
                _put(self.folder / name, text)

    def join(self) -> None:
        """Put the calling process in it, and so all that it starts from now on."""
        _put(self.folder / "cgroup.procs", "0")

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory, its own limit's or the machine's."""
        return _counted(self.folder / ("memory.oom_control" if self.version == 1 else "memory.events"))

    def end(self) -> None:
        """SIGKILL to all in it, and wait for their end."""
        deadline = time.monotonic() + _KILL_SECONDS
        while (pids := self._pids()) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def remove(self) -> None:
        """End what is in it, and the group."""
        self.end()
        with suppress(OSError):
            self.folder.rmdir()

    def _limits(self, nbytes: int | None) -> list[tuple[str, str]]:
        """In an order that the kernel takes: v1's bound on memory and swap may never be below that on memory."""
        if self.version == 2:
            most = "max" if nbytes is None else str(nbytes)
            return [("memory.swap.max", "max" if nbytes is None else "0"), ("memory.max", most)]
        bounds = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if nbytes is None:
            return [(name, "-1") for name in reversed(bounds)]
        return [(name, "-1") for name in reversed(bounds)] + [(name, str(nbytes)) for name in bounds]

    def _pids(self) -> list[int]:
        try:
            pids = map(int, (self.folder / "cgroup.procs").read_text().split())
            return [pid for pid in pids if pid > 0]  # 0 is one of another container, and to kill() this very group
        except OSError:
            return []


def make_memory_group(process: Path = Path("/proc/self")) -> MemoryGroup | None:
    """A new group for this worker's attempts beside or beneath its own; None where the kernel or its owner keeps them.

    Groups of workers that ended without removing theirs go first, with whatever still runs in them.
    """
    for parent in _parents(process):
        _remove_abandoned(parent)
        group = MemoryGroup(parent.folder / f"{_PREFIX}{born(os.getpid())}", parent.version)
        if _made(group):
            return group
    return None


def _made(group: MemoryGroup) -> bool:
    """Whether it is there and can be used: a folder in which the kernel has put the memory controller's files."""
    try:
        group.folder.mkdir(exist_ok=True)
        group.limit(None)
        if group.version == 2:
            _put(group.folder / "memory.oom.group", "1")
        group.oom_kills()
        return os.access(group.folder / "cgroup.procs", os.W_OK)
    except OSError:
        with suppress(OSError):
            group.folder.rmdir()
        return False


def _remove_abandoned(parent: MemoryGroup) -> None:
    for folder in parent.folder.glob(f"{_PREFIX}*"):
        if lives(folder.name.removeprefix(_PREFIX)) is False:
            MemoryGroup(folder, parent.version).remove()


def _parents(process: Path) -> Iterator[MemoryGroup]:
    """Where groups may be made. v2 allows none beneath a group that has processes, as a worker's own most often has;
    beside it there may be room, as under systemd's Delegate=yes with DelegateSubgroup."""
    try:
        own = dict(_own_groups((process / "cgroup").read_text()))
        mounts = list(_mounts((process / "mountinfo").read_text()))
    except OSError:
        return
    for mount, root, version in mounts:
        if version not in own:
            continue
        folder = mount / os.path.relpath(own[version], root)
        if not folder.resolve().is_relative_to(mount) or not folder.is_dir():
            folder = mount
        yield MemoryGroup(folder, version)
        if version == 2 and folder != mount:
            _enable(folder.parent)
            yield MemoryGroup(folder.parent, version)


def _enable(parent: Path) -> None:
    with suppress(OSError):
        _put(parent / "cgroup.subtree_control", "+memory")


def _own_groups(text: str) -> Iterator[tuple[Version, str]]:
    """Lines of /proc/self/cgroup: `4:memory:/path` of v1, `0::/path` of v2."""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield 1, path
        elif not controllers:
            yield 2, path


def _mounts(text: str) -> Iterator[tuple[Path, str, Version]]:
    """Mount points of /proc/self/mountinfo that have the memory controller, v1's first: it is in one of them."""
    found: list[tuple[Path, str, Version]] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        root, place = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup" and "memory" in options.split(","):
            found.append((Path(place), root, 1))
        elif kind == "cgroup2":
            found.append((Path(place), root, 2))
    return iter(sorted(found, key=lambda mount: mount[2]))


def _put(file: Path, text: str) -> None:
    """Into one of the kernel's files; what is not there must not be made."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_TRUNC), "w") as out:
        out.write(text)


def _counted(file: Path) -> int:
    """`oom_kill N` among its lines."""
    for line in file.read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0
