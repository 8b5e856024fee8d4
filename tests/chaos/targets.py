"""What appears and vanishes in the root, as the kernel tells it: each rename, in order, none missed."""

import ctypes
import os
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_EVENT = struct.Struct("iIII")
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _OVERFLOW = 0x40, 0x80, 0x100, 0x200, 0x4000
_NAMES = {_MOVED_FROM: "moved away", _MOVED_TO: "appeared", _CREATE: "created", _DELETE: "deleted"}
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class TargetWatch:
    """inotify on one folder, read by a thread."""

    folder: Path
    events: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By name: `appeared` is a rename to it, `created` a mkdir or a file."""
    inodes: dict[str, int] = field(default_factory=dict[str, int])
    """Of what appeared, right after it did."""
    missed: bool = False
    at_next: Callable[[], None] | None = None
    """Called once, as soon as a target appears."""
    _descriptor: int = -1

    def start(self) -> None:
        self._descriptor = _LIBC.inotify_init1(os.O_CLOEXEC)
        mask = ctypes.c_uint32(_MOVED_FROM | _MOVED_TO | _CREATE | _DELETE)
        if self._descriptor < 0 or _LIBC.inotify_add_watch(self._descriptor, os.fsencode(self.folder), mask) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(self.folder))
        threading.Thread(target=self._read, name="targets", daemon=True).start()

    def _read(self) -> None:
        while True:
            data, position = os.read(self._descriptor, 2**16), 0
            while position < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size
                self._note(mask, data[position : position + length].rstrip(b"\0").decode())
                position += length

    def _note(self, mask: int, name: str) -> None:
        if mask & _OVERFLOW:
            self.missed = True
        for bit, what in _NAMES.items():
            if mask & bit:
                self.events[name].append(what)
        if mask & _MOVED_TO and ".partial-" not in name:
            do, self.at_next = self.at_next, None
            if do is not None:
                do()
            self.inodes.setdefault(name, inode(self.folder / name))


def inode(path: Path) -> int:
    """0 where nothing is there."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0
