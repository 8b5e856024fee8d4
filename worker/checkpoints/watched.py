"""Paths that note what planning asks of them, so that the answers can be held to be the same when all is written."""

import errno
import io
import os
import stat
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path, PosixPath
from typing import IO, Any, Literal, cast, override

from ..jobs.errors import BadInputError, FerryError
from ..jobs.locations import Locations
from .identity import FileIdentity, content_digest, refuse_changed, source_changed

_TICK_NS = 20_000_000
"""Files' times stand still for up to 10 ms: of two writes within them the second leaves no trace."""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

Presence = Literal["exists", "is_file", "is_dir"]


@dataclass(frozen=True, slots=True)
class Looked:
    """A name that was looked for."""

    path: Path
    presence: Presence
    found: bool

    def refuse_changed(self) -> None:
        if getattr(self.path, self.presence)() != self.found:
            raise _appeared(self.path) if not self.found else _gone(self.path)


@dataclass(frozen=True, slots=True)
class Listed:
    """A folder of which these names fit a pattern."""

    folder: Path
    pattern: str
    names: frozenset[str]

    def refuse_changed(self) -> None:
        now = names_in(self.folder, self.pattern)
        for name in sorted(now - self.names):
            raise _appeared(self.folder / name)
        for name in sorted(self.names - now):
            raise _gone(self.folder / name)


@dataclass(frozen=True, slots=True)
class Led:
    """A location, and where it led to."""

    location: str
    path: Path
    locations: Locations

    def refuse_changed(self) -> None:
        try:
            now = self.locations.resolve_source(self.location)
        except FerryError as error:
            raise source_changed(self.path, str(error), f"what {self.location!r} led to at first") from error
        if now != self.path:
            raise source_changed(self.path, f"{self.location!r} leading to {now}", "it to lead there still")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was asked, and what was answered first."""

    files: tuple[FileIdentity, ...] = ()
    answers: tuple[Looked | Listed | Led, ...] = ()

    def refuse_changed(self) -> tuple[Path, ...]:
        """BadInputError (`source_changed`) where an answer would be another one now; answers what may have changed."""
        touched = refuse_changed(self.files)
        for answer in self.answers:
            answer.refuse_changed()
        return touched


@dataclass(slots=True)
class Watch:
    """Over the paths of one plan. The first answer to a question is the answer to all like it."""

    statuses: dict[str, os.stat_result] = field(default_factory=dict[str, os.stat_result])
    digests: dict[str, str] = field(default_factory=dict[str, str])
    looked: dict[tuple[str, Presence], Looked] = field(default_factory=dict[tuple[str, Presence], Looked])
    listed: dict[tuple[str, str], Listed] = field(default_factory=dict[tuple[str, str], Listed])
    led: dict[str, Led] = field(default_factory=dict[str, Led])

    def over(self, locations: Locations) -> Locations:
        """The same places, their sources under watch."""
        return _Watched(locations, self)

    @property
    def seen(self) -> Seen:
        """Up to now."""
        return Seen(
            files=tuple(
                FileIdentity.of(Path(path), status, self.digests.get(path)) for path, status in self.statuses.items()
            ),
            answers=(*self.looked.values(), *self.listed.values(), *self.led.values()),
        )


class WatchedPath(PosixPath):
    """A path whose questions are noted, and those of all paths made of it. In another process it is a plain one."""

    __slots__ = ("_watch",)

    def __init__(self, *segments: str | os.PathLike[str], watch: Watch) -> None:  # pyright: ignore[reportInconsistentConstructor]  # upstream's __new__ takes what __init__ will
        super().__init__(*segments)
        self._watch = watch

    @override
    def with_segments(self, *pathsegments: str | os.PathLike[str]) -> "WatchedPath":
        return WatchedPath(*pathsegments, watch=self._watch)

    @override
    def __reduce__(self) -> Any:
        return Path, (str(self),)

    @override
    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._look("exists")

    @override
    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self._look("is_file")

    @override
    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._look("is_dir")

    def _look(self, presence: Presence) -> bool:
        key = (str(self), presence)
        if key not in self._watch.looked:
            plain = Path(self)
            self._watch.looked[key] = Looked(plain, presence, getattr(plain, presence)())
        return self._watch.looked[key].found

    @override
    def glob(self, pattern: str, **options: Any) -> Generator["WatchedPath"]:  # pyright: ignore[reportIncompatibleMethodOverride]  # upstream's are version-dependent
        key = (str(self), pattern)
        if key not in self._watch.listed:
            self._watch.listed[key] = Listed(Path(self), pattern, names_in(Path(self), pattern))
        return (self / name for name in sorted(self._watch.listed[key].names))

    @override
    def rglob(self, pattern: str, **options: Any) -> Generator["WatchedPath"]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as glob
        return self.glob(f"**/{pattern}")

    @override
    def iterdir(self) -> Generator["WatchedPath"]:
        return self.glob("*")

    @override
    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Of a file, as it stood at the first look."""
        if not follow_symlinks or not Path(self).is_file():
            return super().stat(follow_symlinks=follow_symlinks)
        if str(self) not in self._watch.statuses:
            self._watch.statuses[str(self)] = _settled(str(self))
        return self._watch.statuses[str(self)]

    @override
    def open(self, *args: Any, **options: Any) -> IO[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  # one return type for all modes
        try:
            _refuse_no_file(Path(self))
            file = cast("IO[Any]", Path(self).open(*args, **options))  # noqa: SIM115  # the caller closes it
        except FileNotFoundError:
            self._look("exists")
            raise
        if str(self) not in self._watch.statuses:
            self._watch.statuses[str(self)] = _settled(file.fileno())
        return file

    @override
    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            data: bytes = file.read()
        self._watch.digests.setdefault(str(self), content_digest(data))
        return data

    @override
    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding, errors, newline).read()


@dataclass(frozen=True, slots=True)
class _Watched:
    locations: Locations
    watch: Watch

    @property
    def allow_pickle(self) -> bool:
        return self.locations.allow_pickle

    def resolve(self, location: str) -> Path:
        return self.locations.resolve(location)

    def resolve_target(self, location: str) -> Path:
        return self.locations.resolve_target(location)

    def resolve_source(self, location: str) -> Path:
        if location not in self.watch.led:
            self.watch.led[location] = Led(location, self.locations.resolve_source(location), self.locations)
        return WatchedPath(self.watch.led[location].path, watch=self.watch)


def _refuse_no_file(path: Path) -> None:
    """BadInputError for what is opened in vain, for ever, or without an end."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        found = "a symbolic link to itself"
    else:
        if stat.S_ISREG(mode):
            return
        found = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise BadInputError(
        "bad_location",
        f"source file {path}",
        found=found,
        expected="a file",
        next_step="Put the file there, or name another source.",
    )


def names_in(folder: Path, pattern: str) -> frozenset[str]:
    """What fits the pattern, by path inside the folder."""
    return frozenset(str(path.relative_to(folder)) for path in folder.glob(pattern))


def _settled(place: str | int) -> os.stat_result:
    """A file's status, old enough that a later write will show in it."""
    status = os.stat(place)
    if 0 <= time.time_ns() - status.st_ctime_ns < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        status = os.stat(place)
    return status


def _appeared(path: Path) -> FerryError:
    return source_changed(path, "it, which was not there when the job was planned", "a source that is whole")


def _gone(path: Path) -> FerryError:
    return source_changed(path, "nothing of this name any more", "what was there when the job was planned")
