"""Source identity: size, time and inode of every file that is read, so that a change under way is noticed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..jobs.errors import BadInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """One file as it stood when the job was planned."""

    path: Path
    bytes: int
    mtime_ns: int
    inode: int


def identities(paths: Iterable[Path]) -> tuple[FileIdentity, ...]:
    """The files as they stand now, each once."""
    return tuple(_identity(path) for path in dict.fromkeys(paths))


def refuse_changed(before: Iterable[FileIdentity]) -> None:
    """BadInputError (`source_changed`) where a file is not what it was."""
    for identity in before:
        if not identity.path.exists() or _identity(identity.path) != identity:
            raise BadInputError(
                "source_changed",
                f"source file {identity.path}",
                found="another size, time or inode than when the job was planned",
                expected="a source that stays as it is while it is read",
                next_step="Wait until its writer is done, then submit the job again.",
            )


def _identity(path: Path) -> FileIdentity:
    status = path.stat()
    return FileIdentity(path=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
