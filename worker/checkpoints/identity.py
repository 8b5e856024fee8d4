"""Source identity: size, times and inode of every file that is read, so that a change under way is noticed."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from ..jobs.errors import BadInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class FileIdentity:
    """One file as it stood when the job was planned."""

    path: Path
    bytes: int
    mtime_ns: int
    ctime_ns: int
    """Moved by a write whose time was set back, and by links and rights alone too."""
    inode: int
    device: int
    digest: str | None = None
    """Of its content, where that was read whole."""

    @classmethod
    def of(cls, path: Path, status: os.stat_result, digest: str | None = None) -> "FileIdentity":
        return cls(
            path=Path(path),
            bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
            inode=status.st_ino,
            device=status.st_dev,
            digest=digest,
        )

    def content_at(self, ctime_ns: int) -> "FileIdentity":
        """The same file, its inode touched at another time."""
        return replace(self, ctime_ns=ctime_ns, digest=None)


def identities(paths: Iterable[Path]) -> tuple[FileIdentity, ...]:
    """The files, each once: as they stood when a watched path opened them first, else as they stand now."""
    return tuple(FileIdentity.of(path, path.stat()) for path in dict.fromkeys(paths))


def refuse_changed(before: Iterable[FileIdentity]) -> tuple[Path, ...]:
    """BadInputError (`source_changed`) where a file is not what it was.

    Answers those that may have been written with their time set back, or whose links or rights changed: whoever has
    their content must compare it.
    """
    touched: list[Path] = []
    for identity in before:
        try:
            now = FileIdentity.of(identity.path, identity.path.stat())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise source_changed(identity.path, "no such file any more", "the file that was planned with") from error
        if now != identity.content_at(now.ctime_ns):
            raise source_changed(
                identity.path,
                "another size, time or inode than when the job was planned",
                "a source that stays as it is while it is read",
            )
        if now.ctime_ns != identity.ctime_ns and identity.digest is None:
            touched.append(identity.path)
        elif now.ctime_ns != identity.ctime_ns and content_digest(identity.path.read_bytes()) != identity.digest:
            raise set_back(identity.path)
    return tuple(touched)


def content_digest(data: bytes) -> str:
    """Of a file's bytes."""
    return xxhash.xxh3_128_hexdigest(data)


def set_back(path: Path) -> BadInputError:
    """The error for a file that was written without a trace in its size and time."""
    return source_changed(
        path,
        "other bytes than when the job was planned, of the same size and time",
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
