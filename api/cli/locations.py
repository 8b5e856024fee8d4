"""Locations as they are typed: a path of this machine, or `root:relative/path` of the server's."""

import re
from pathlib import Path

_ROOTED = re.compile(r"^[A-Za-z][A-Za-z0-9_-]*:")


def as_sent(typed: str) -> str:
    """A path becomes absolute; `root:path` stays, unless a file of that very name lies here."""
    if _ROOTED.match(typed) and not Path(typed).exists():
        return typed
    return str(Path(typed).expanduser().absolute())
