"""How much room a file system has."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A file system's room now."""

    filesystem: str
    """What is mounted there; the same for all hosts where it is shared."""
    free_bytes: int
    size_bytes: int


def room_at(path: Path) -> Room:
    """Of the file system that would hold `path`, which need not exist yet."""
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    status = os.statvfs(place)
    return Room(
        filesystem=_name(place),
        free_bytes=status.f_bavail * status.f_frsize,
        size_bytes=status.f_blocks * status.f_frsize,
    )


def _name(place: Path) -> str:
    """Its device and, where that is of this machine alone, the machine. Network file systems name a server."""
    resolved = place.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if resolved.is_relative_to(mount.mountpoint)]
    if not mounts:
        return f"{os.uname().nodename}:{place.stat().st_dev}"
    # Of several on one place, the last one hides the others.
    mount = max(enumerate(mounts), key=lambda found: (len(Path(found[1].mountpoint).parts), found[0]))[1]
    return mount.device if ":" in mount.device else f"{os.uname().nodename}:{mount.device}:{mount.mountpoint}"
