"""A small disk of our own, in a mount namespace that ends with this process and all that it started."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MS_REMOUNT, _MS_REC, _MS_PRIVATE = 0x20, 0x4000, 0x40000
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def leave_mounts_of_others() -> bool:
    """From here on, what this process mounts is seen by it and its children alone. False where that is not allowed.

    Call it before the first thread starts: a namespace belongs to a thread.
    """
    user, group = os.getuid(), os.getgid()
    try:
        os.unshare(os.CLONE_NEWNS if user == 0 else os.CLONE_NEWUSER | os.CLONE_NEWNS)
        if user != 0:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                Path("/proc/self", name).write_text(text)
        _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE, None)
    except OSError:
        return False
    return True


@dataclass(slots=True)
class Disk:
    """A tmpfs that can run full and be emptied again: it shrinks to what it holds."""

    path: Path
    bytes: int
    _full: bool = False

    def mount(self) -> None:
        _mount("ferry-chaos", self.path, "tmpfs", 0, f"size={self.bytes},mode=700")

    def unmount(self) -> None:
        """With all that it holds."""
        if _LIBC.umount2(os.fsencode(self.path), _MNT_DETACH) != 0:
            raise _error(self.path)

    def fill(self) -> None:
        """Leave next to nothing free. Call it again: what is removed meanwhile makes room."""
        self._full = True
        status = os.statvfs(self.path)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        with suppress(OSError):  # Someone wrote in this moment; the next call comes soon.
            self._resize(used + 2 * status.f_frsize)

    def free(self) -> None:
        """As much room as at first."""
        if self._full:
            self._full = False
            self._resize(self.bytes)

    def _resize(self, size: int) -> None:
        _mount("ferry-chaos", self.path, "tmpfs", _MS_REMOUNT, f"size={size}")


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, str(target), kind, options)]
    if _LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        raise _error(target)


def _error(path: Path) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), str(path))
