"""Publishing: a folder is written beside its target and appears by one rename, or not at all."""

import ctypes
import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..jobs.errors import BadInputError
from ..jobs.locations import refuse_existing, target_exists

MANIFEST = "manifest.json"
_PARTIAL = ".partial-"
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedFolder:
    """`<target>.partial-<suffix>`, on its way to become `target`."""

    path: Path
    target: Path

    def publish(self) -> None:
        """Rename to the target, durably. ConflictError where the target exists by now, an empty directory included."""
        _rename_without_replacing(self.path, self.target)
        sync_directory(self.target.parent)

    def discard(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.path, ignore_errors=True)


def stage(target: Path, suffix: str) -> StagedFolder:
    """A fresh, empty folder beside `target`. ConflictError where the target exists."""
    refuse_existing(target)
    if not target.parent.is_dir():
        raise BadInputError(
            "missing_file",
            f"target {target}",
            found=f"no directory {target.parent}",
            expected="an existing parent directory",
            next_step="Create it, or choose another target.",
        )
    staged = StagedFolder(path=target.with_name(f"{target.name}{_PARTIAL}{suffix}"), target=target)
    staged.discard()
    staged.path.mkdir()
    return staged


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
