"""Memory that arithmetic uses again and again: fresh arrays cost more in page faults than the arithmetic does."""

import numpy as np

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


def room(name: str, count: int) -> Ints:
    """`count` numbers, to be written before they are read; they hold until the same name is asked for again."""
    found = _ROOMS.get(name)
    if found is None or found.size < count:
        found = _ROOMS[name] = np.empty(count, np.int32)
    return found[:count]


_ROOMS: dict[str, Ints] = {}
