"""Where unix sockets lie: under the data folder, or in a private one where the kernel could not take that path."""

import hashlib
import os
import re
import tempfile
from pathlib import Path

from ..jobs.errors import BadInputError

_PATH_LIMIT = 107
"""Bytes in a `sockaddr_un`, less the closing NUL."""
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)
"""A path that also stands unquoted in a URL."""


def socket_path(data: Path, name: str) -> Path:
    """The place of the socket `name` of the service on `data`; the same on every call."""
    path = data / "run" / name
    if len(os.fsencode(path)) <= _PATH_LIMIT and _PLAIN.fullmatch(str(path)):
        return path
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ferry-{os.getuid()}-{digest}" / name


def make_private(folder: Path) -> None:
    """Create the folder of a socket. BadInputError where it is another user's, who could put another server there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BadInputError(
            "bad_location",
            f"folder {folder}",
            found="a folder that others may write",
            expected="a folder of your own for sockets",
            next_step="Remove it, or choose another data folder (FERRY_DATA).",
        )
