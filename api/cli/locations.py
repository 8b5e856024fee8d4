"""Locations as they are typed: a path of this machine, or `root:relative/path` of the server's."""

import re
from pathlib import Path

_ROOTED = re.compile(r"^[A-Za-z][A-Za-z0-9_-]*:")


def weighted(typed: str) -> tuple[str, float]:
    """`PATH` or `PATH:WEIGHT`: a number after the last colon is a weight, unless a folder has that very name."""
    path, colon, weight = typed.rpartition(":")
    try:
        return (typed, 1.0) if not colon or Path(typed).exists() else (path, float(weight))
    except ValueError:
        return typed, 1.0


def no_weight(typed: str) -> bool:
    """Whether `PATH:WEIGHT` must have been meant and WEIGHT is no number: a folder of this machine is before it."""
    path, colon, weight = typed.rpartition(":")
    if _ROOTED.match(typed) and not re.match(r"[-+.\d]", weight):
        return False
    return bool(colon) and weighted(typed)[0] == typed and not Path(typed).exists() and Path(path).is_dir()


def as_sent(typed: str) -> str:
    """A path becomes absolute; `root:path` stays, unless a file of that very name lies here."""
    if _ROOTED.match(typed) and not Path(typed).exists():
        return typed
    return str(Path(typed).expanduser().absolute())
