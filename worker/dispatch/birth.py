"""Processes named so that no later one is taken for them: numbers are given again, a start time is not."""

import os
from contextlib import suppress
from pathlib import Path


def born(pid: int) -> str | None:
    """`<number space>-<pid>-<start in clock ticks>`, unique on this host since its boot; None where there is no such
    process."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        # The second field, the program's name, may hold anything; the start is the 22nd.
        return f"{_space()}-{pid}-{stat.rpartition(')')[2].split()[19]}"
    return None


def lives(name: str) -> bool | None:
    """Whether the process of that name still runs; None where it is one of another container, or no such name."""
    space, _, rest = name.partition("-")
    pid, _, _ = rest.partition("-")
    if space != _space() or not pid.isdecimal():
        return None
    return born(int(pid)) == name


def _space() -> str:
    """Containers count their processes apart."""
    return str(os.stat("/proc/self/ns/pid").st_ino)
