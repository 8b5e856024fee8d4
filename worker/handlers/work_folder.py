"""The folder that a job writes into: a fresh one, or that of an earlier attempt whose finished parts still hold."""

import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.extents import TargetFile
from ..checkpoints.publish import StagedFolder
from ..engine.journal import JOURNAL, Journal, Known, read_journal


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Where the output comes to be."""

    staged: StagedFolder
    journal: Journal

    def discard(self) -> None:
        """Remove what was written."""
        self.journal.close()
        self.staged.discard()

    def leave(self) -> None:
        """Let a later attempt go on from here."""
        self.journal.close()


def open_work(
    staged: StagedFolder, earlier: Iterable[Path], fingerprint: str, files: Iterable[TargetFile]
) -> WorkFolder:
    """Go on in the folder of an earlier attempt, if one fits; the others are removed.

    `fingerprint` is that of spec, source, plan and versions: what was written under another one counts for nothing.
    """
    sizes = {file.path: file.size for file in files}
    journal: Journal | None = None
    for folder in earlier:
        known = None if journal else _fits(folder, fingerprint, sizes)
        if known is not None:
            journal = _take_over(staged, folder, known, sizes)
        elif folder != staged.path:
            shutil.rmtree(folder, ignore_errors=True)
    return WorkFolder(staged, journal or _begin(staged, fingerprint, sizes))


def _fits(folder: Path, fingerprint: str, sizes: Mapping[str, int]) -> Known | None:
    known = read_journal(folder)
    if known is None or not known.done or not known.fingerprint.startswith(fingerprint + ":"):
        return None
    whole = all(_size(folder / path) == size for path, size in sizes.items())
    return known if whole else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None


def _take_over(staged: StagedFolder, folder: Path, known: Known, sizes: Mapping[str, int]) -> Journal | None:
    """None where somebody else was faster."""
    try:
        if folder != staged.path:
            folder.rename(staged.path)
        journal = Journal.go_on(staged.path, known)
    except FileNotFoundError:
        return None
    for path in [path for path in staged.path.rglob("*") if not path.is_dir()]:
        name = str(path.relative_to(staged.path))
        if name not in sizes and name != JOURNAL:
            path.unlink()
    return journal


def _begin(staged: StagedFolder, fingerprint: str, sizes: Mapping[str, int]) -> Journal:
    staged.make_empty()
    journal = Journal.begin(staged.path, f"{fingerprint}:{secrets.token_hex(8)}")
    for name, size in sizes.items():
        _make(staged.path / name, size)
    return journal


def _make(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.truncate(size)
