"""Publishing: a folder is written beside its target and appears by one rename, or not at all."""

import ctypes
import errno
import fcntl
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..jobs.errors import BadInputError, ConflictError
from ..jobs.locations import refuse_existing, target_exists

MANIFEST = "manifest.json"
_PARTIAL = ".partial-"
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFolder:
    """`<target>.partial-<suffix>`, on its way to become `target`."""

    path: Path
    target: Path
    replaces: bool = False
    """Whether what stands at the target makes way, in the same moment in which the output appears."""

    def make_empty(self) -> None:
        """A folder without content; one that is there stays the same folder."""
        self.path.mkdir(exist_ok=True)
        for path in list(self.path.iterdir()):
            _remove(path)
        if self.replaces:
            _refuse_without_exchange(self)

    def publish(self) -> None:
        """Rename to the target, durably. ConflictError where the target exists by now, an empty directory included."""
        if self.replaces and os.path.lexists(self.target):
            _exchange(self.path, self.target)
            sync_directory(self.target.parent)
            _remove(self.path)
        else:
            _rename_without_replacing(self.path, self.target)
            sync_directory(self.target.parent)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.path, ignore_errors=True)


def stage(target: Path, suffix: str, *, replaces: bool = False) -> StagedFolder:
    """A fresh, empty folder beside `target`. ConflictError where the target exists and is not to be replaced."""
    staged = staged_folder(target, suffix, replaces=replaces)
    staged.make_empty()
    return staged


def staged_folder(target: Path, suffix: str, *, replaces: bool = False) -> StagedFolder:
    """The folder beside `target`, which need not exist yet. ConflictError as `stage`."""
    if not replaces:
        refuse_existing(target)
    if not target.parent.is_dir():
        raise BadInputError(
            "missing_file",
            f"target {target}",
            found=f"no directory {target.parent}",
            expected="an existing parent directory",
            next_step="Create it, or choose another target.",
        )
    return StagedFolder(path=partial_folder(target, suffix), target=target, replaces=replaces)


def partial_folder(target: Path, suffix: str) -> Path:
    """Where the output of `target` comes to be."""
    return target.with_name(f"{target.name}{_PARTIAL}{suffix}")


def lock_folder(folder: Path) -> None:
    """Make the folder this process's own until it ends. ConflictError where it is another's that lives."""
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _in_use(folder) from error
        if folder.is_dir() and folder.stat().st_ino == os.fstat(descriptor).st_ino:
            return  # and leave it open
        os.close(descriptor)  # It was removed between the two looks.


def _in_use(folder: Path) -> ConflictError:
    return ConflictError(
        "target_reserved",
        f"partial output {folder}",
        found="another process that writes there now",
        expected="nobody else at work on this target",
        next_step="Wait for it, or choose another target.",
    )


def partial_folders(target: Path, job_id: str) -> list[Path]:
    """What attempts of `job_id` (their suffixes are `<job_id>-<fence>`) left beside `target`."""
    prefix = f"{target.name}{_PARTIAL}{job_id}-"
    return [path for path in target.parent.glob("*") if path.name.startswith(prefix)]


def published_manifest(target: Path) -> dict[str, object] | None:
    """The manifest in `target`, or None where there is no whole output."""
    try:
        manifest: dict[str, object] = json.loads((target / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    return manifest


def sync_directory(path: Path) -> None:
    """fsync a directory, so that its entries survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_without_replacing(source: Path, target: Path) -> None:
    """renameat2(RENAME_NOREPLACE): plain rename() silently replaces an empty directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        raise target_exists(target)
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    # Some network file systems know no flags. The target was reserved and looked at; rename() refuses a full directory.
    refuse_existing(target)
    source.rename(target)


def _exchange(one: Path, other: Path) -> None:
    """renameat2(RENAME_EXCHANGE): both names change their owners in one moment."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def _refuse_without_exchange(staged: StagedFolder) -> None:
    """BadInputError where the file system knows no exchange: found out on two empty folders inside the staged one."""
    probes = [staged.path / "one", staged.path / "other"]
    for probe in probes:
        probe.mkdir()
    try:
        _exchange(*probes)
    except OSError as error:
        staged.discard()
        raise BadInputError(
            "bad_request",
            f"on_exists: replace for target {staged.target}",
            found=f"a file system that cannot exchange two names at once ({error.strerror})",
            expected="renameat2(RENAME_EXCHANGE), as local Linux file systems have it",
            next_step="Choose a new target, and switch its readers over to it.",
        ) from error
    for probe in probes:
        probe.rmdir()


def _remove(path: Path) -> None:
    """What was replaced: a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
