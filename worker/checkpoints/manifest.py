"""The manifest: written last, it proves a folder whole and says where it came from."""

import json
import os
from pathlib import Path

from .publish import MANIFEST

SCHEMA = 1


def write_manifest(folder: Path, manifest: dict[str, object]) -> None:
    """Write manifest.json and sync it."""
    write_synced(folder / MANIFEST, json.dumps({"schema": SCHEMA, **manifest}, indent=1).encode() + b"\n")


def write_synced(path: Path, data: bytes) -> None:
    """A new small file, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
