"""Whose a written folder is: owner, group and mode, as the root that it appears in wants them."""

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from ..jobs.errors import BadInputError
from ..jobs.roots import Root

_CAP_CHOWN = 1 << 0
_UNCHANGED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """Numbers as `chown` takes them; -1 leaves a thing as it is, and so does no mode."""

    owner: int = _UNCHANGED
    group: int = _UNCHANGED
    mode: int | None = None

    def give(self, folder: Path) -> None:
        """To the folder and all in it."""
        for place, _, files in os.walk(folder, topdown=False):
            for name in files:
                path = Path(place, name)
                if path.lstat().st_nlink == 1:  # a file that another folder shares stays as it is there
                    self._give(path, self.mode)
            self._give(Path(place), None if self.mode is None else _enterable(self.mode))

    def _give(self, path: Path, mode: int | None) -> None:
        if mode is not None:
            path.chmod(mode)
        if (self.owner, self.group) != (_UNCHANGED, _UNCHANGED):
            os.chown(path, self.owner, self.group, follow_symlinks=False)


def ownership_of(name: str, root: Root) -> Ownership:
    """What the root's settings say. BadInputError for a user or group that this host does not know, or to whom this
    process may not give files."""
    owner, group = _user(name, root.owner), _group(name, root.group)
    allowed = _may_give_away() or (
        owner in (_UNCHANGED, os.geteuid()) and group in (_UNCHANGED, os.getegid(), *os.getgroups())
    )
    if not allowed:
        raise BadInputError(
            "bad_request",
            f"root {name!r}",
            found=f"owner {root.owner or 'unchanged'}, group {root.group or 'unchanged'}",
            expected=f"a group of this worker's user (number {os.geteuid()}), or a worker that may give files away",
            next_step="Run the worker as root or with CAP_CHOWN, add its user to the group, or drop the setting.",
        )
    return Ownership(owner=owner, group=group, mode=root.mode)


def _enterable(mode: int) -> int:
    """x beside each r."""
    return mode | (mode & 0o444) >> 2


def _user(root: str, given: str | None) -> int:
    try:
        return _UNCHANGED if given is None else int(given) if given.isdecimal() else pwd.getpwnam(given).pw_uid
    except KeyError as error:
        raise _unknown(root, f"owner {given!r}") from error


def _group(root: str, given: str | None) -> int:
    try:
        return _UNCHANGED if given is None else int(given) if given.isdecimal() else grp.getgrnam(given).gr_gid
    except KeyError as error:
        raise _unknown(root, f"group {given!r}") from error


def _may_give_away() -> bool:
    """Root, most often."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) & _CAP_CHOWN)


def _unknown(root: str, found: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"root {root!r}",
        found=f"{found}, whom this host does not know",
        expected="a user or group of this host, by name or number",
        next_step="Correct it in FERRY_ROOTS or --root, or give the number.",
    )
