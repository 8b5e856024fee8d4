"""An attempt's memory: bounded by a cgroup or watched, and told apart from other ends when it ran out."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .memory_group import MemoryGroup

_VMSTAT = Path("/proc/vmstat")
_DIE_FIRST = 500
"""Of -1000 to 1000: when the machine's memory runs out, attempts go before the broker and the workers."""


@dataclass(slots=True)
class AttemptMemory:
    """`limit_bytes` bounds what the attempt's processes hold together; None: no bound but the machine's."""

    limit_bytes: int | None
    group: MemoryGroup | None
    _kills_before: int = field(init=False)
    _watched: bool = field(init=False)

    def __post_init__(self) -> None:
        self._watched = self.limit_bytes is not None
        if self.group is not None:
            with suppress(OSError):
                self.group.limit(self.limit_bytes)
                self._watched = False
        self._kills_before = self._kills()

    def enter(self) -> None:
        """First deed of the attempt's process."""
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_DIE_FIRST))
        if self.group is not None:
            self.group.join()

    def end(self) -> None:
        """SIGKILL to whatever is left in its group."""
        if self.group is not None:
            self.group.end()

    def exceeded(self, pid: int) -> bool:
        """Whether the attempt holds more than it may, where no cgroup sees to that."""
        return self._watched and self.limit_bytes is not None and _held_bytes(pid) > self.limit_bytes

    def oom_killed(self) -> bool:
        """Whether the kernel has killed for want of memory since: in the group where there is one, else anywhere."""
        return self._kills() > self._kills_before

    def _kills(self) -> int:
        try:
            return _machine_kills() if self.group is None else self.group.oom_kills()
        except OSError:
            return 0


def _held_bytes(pid: int) -> int:
    """Of a process and its descendants: memory that is no file's, each page once."""
    try:
        process = psutil.Process(pid)
        return sum(_private_bytes(one.pid) for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _private_bytes(pid: int) -> int:
    """Its share: a page that two processes have is half a page of each, as forked ones do."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # It ended.
    sizes = {name: text for name, _, text in (line.partition(":") for line in lines)}
    return sum(int(sizes[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem") if name in sizes)


def _machine_kills() -> int:
    for line in _VMSTAT.read_text().splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
