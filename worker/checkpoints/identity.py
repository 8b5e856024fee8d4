"""Source identity: size, times and inode of every file that is read, so that a change under way is noticed."""

import os
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
    device: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> "FileIdentity":
        return cls(
            path=Path(path),
            bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            inode=status.st_ino,
            device=status.st_dev,
        )


def identities(paths: Iterable[Path]) -> tuple[FileIdentity, ...]:
    """The files, each once: as they stood when a watched path opened them first, else as they stand now."""
    return tuple(FileIdentity.of(path, path.stat()) for path in dict.fromkeys(paths))


def refuse_changed(before: Iterable[FileIdentity]) -> None:
    """BadInputError (`source_changed`) where a file is not what it was."""
    for identity in before:
        try:
            now = FileIdentity.of(identity.path, identity.path.stat())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise source_changed(identity.path, "no such file any more", "the file that was planned with") from error
        if now != identity:
            raise source_changed(
                identity.path,
                "another size, time or inode than when the job was planned",
                "a source that stays as it is while it is read",
            )


def source_changed(path: Path, found: str, expected: str) -> BadInputError:
    """The error for a source of which this is not what it was."""
    return BadInputError(
        "source_changed",
        f"source file {path}",
        found=found,
        expected=expected,
        next_step="Wait until its writer is done, then submit the job again.",
    )
