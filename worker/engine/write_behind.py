"""Writing to the disk begun before anyone waits for it: sync_file_range(2) of Linux, which Python's os lacks."""

import ctypes
from collections.abc import Callable
from functools import cache

_SYNC_FILE_RANGE_WRITE = 2


def begin_writing(descriptor: int, start: int, length: int) -> None:
    """A hint: where it cannot be followed, all is written when it is synced."""
    if (call := _sync_file_range()) is not None:
        call(descriptor, start, length, _SYNC_FILE_RANGE_WRITE)


@cache
def _sync_file_range() -> Callable[..., int] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
