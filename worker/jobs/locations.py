"""Locations: `root-name:relative/path` or a path under a configured root, resolved and confined."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import BadInputError, ConflictError

_NAMED = re.compile(r"^(?P<root>[A-Za-z][A-Za-z0-9_-]*):(?P<path>.*)$", re.DOTALL)


class Locations(Protocol):
    """Turns a location into a path, and says what may be read there."""

    @property
    def allow_pickle(self) -> bool:
        """Whether formats whose index is a pickle are read; even then nothing in a pickle runs."""
        ...

    def resolve(self, location: str) -> Path:
        """An absolute path without links or `..`; BadInputError where the location is not allowed."""
        ...

    def resolve_source(self, location: str) -> Path:
        """The same, for something that will be read: no link beneath it leads out either."""
        ...

    def resolve_target(self, location: str) -> Path:
        """The same, for something that will be made, or replaced: no root itself."""
        ...


@dataclass(frozen=True, slots=True)
class LocalPaths:
    """Any path that this user may use: what `--local` commands take."""

    allow_pickle: bool = False

    def resolve(self, location: str) -> Path:
        _refuse_nul(location)
        return Path(location).expanduser().resolve()

    def resolve_source(self, location: str) -> Path:
        return self.resolve(location)

    def resolve_target(self, location: str) -> Path:
        return self.resolve(location)


@dataclass(frozen=True, slots=True)
class Roots:
    """Named directories; nothing outside them can be read or written. Links in their own paths are followed once."""

    paths: Mapping[str, Path]
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", {name: path.resolve() for name, path in self.paths.items()})

    def resolve(self, location: str) -> Path:
        _refuse_nul(location)
        named = _NAMED.match(location)
        if named:
            return self._under_root(location, named["root"], named["path"])
        path = Path(location)
        if not path.is_absolute():
            raise self._error(location, "a relative path")
        return self._under_any_root(location, path.resolve())

    def resolve_source(self, location: str) -> Path:
        path = self.resolve(location)
        for link in _links_beneath(path):
            if not self._holds(link.resolve()):
                raise self._error(location, f"a link out of it: {link} -> {link.resolve()}")
        return path

    def resolve_target(self, location: str) -> Path:
        path = self.resolve(location)
        if any(root.is_relative_to(path) for root in self.paths.values()):
            raise self._error(location, "a root itself")
        return path

    def _holds(self, path: Path) -> bool:
        return any(path.is_relative_to(root) for root in self.paths.values())

    def _under_root(self, location: str, name: str, relative: str) -> Path:
        if name not in self.paths:
            raise self._error(location, f"an unknown root {name!r}")
        root = self.paths[name]
        path = (root / relative).resolve()
        if Path(relative).is_absolute() or not path.is_relative_to(root):
            raise self._error(location, f"a path that leaves root {name!r}")
        return path

    def _under_any_root(self, location: str, path: Path) -> Path:
        if self._holds(path):
            return path
        raise self._error(location, f"{path}, which is under no root")

    def _error(self, location: str, found: str) -> BadInputError:
        known = ", ".join(f"{name} = {path}" for name, path in self.paths.items()) or "none configured"
        return BadInputError(
            "bad_location",
            f"location {location!r}",
            found=found,
            expected=f"root:relative/path or an absolute path under a root ({known})",
            next_step="Use one of the roots, or start the server with `ferry up --root NAME=PATH`.",
        )


def _links_beneath(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files) if Path(place, name).is_symlink())


def refuse_existing(target: Path) -> None:
    """ConflictError where anything stands at `target`; an empty directory or a dangling link counts."""
    if os.path.lexists(target):
        raise target_exists(target)


def refuse_taken(target: Path, *, replaces: bool) -> None:
    """ConflictError where something stands at `target` that is not to make way, or that no job wrote: a file."""
    if not replaces:
        refuse_existing(target)
    elif os.path.lexists(target) and not target.is_dir():
        raise ConflictError(
            "target_exists",
            f"target {target}",
            found="a file, which is no output of a job",
            expected="a folder to replace, or a path that does not exist yet",
            next_step="Move the file away, or choose another target.",
        )


def refuse_inside(source: Path, target: Path, field: str = "source") -> None:
    """BadInputError where the target would lie in the folder that is read, or take its place."""
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise BadInputError(
            "bad_location",
            f"target {target}",
            found=f"{_where(source, target)} the {field} {source}",
            expected=f"a target beside the {field} or elsewhere",
            next_step="Choose another target.",
        )


def _where(source: Path, target: Path) -> str:
    if target == source:
        return "the place of"
    return f"a place {'inside' if target.is_relative_to(source) else 'around'}"


def target_exists(target: Path) -> ConflictError:
    """The error for a target that is already there."""
    return ConflictError(
        "target_exists",
        f"target {target}",
        found="something already there",
        expected="a path that does not exist yet",
        next_step="Remove it, or choose another target.",
    )


def _refuse_nul(location: str) -> None:
    if "\x00" in location:
        raise BadInputError(
            "bad_location",
            f"location {location!r}",
            found="a NUL character",
            expected="a path",
            next_step="Remove it.",
        )
