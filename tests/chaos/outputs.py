"""Published folders held against their manifests, and against those of undisturbed jobs."""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

_MANIFEST = "manifest.json"


def wrong_with(folder: Path, reference: Path) -> Iterator[str]:
    """Every way in which a published folder is not what it should be."""
    try:
        manifest = read_manifest(folder)
    except (OSError, ValueError) as error:
        yield f"{folder.name}: no readable manifest: {error}"
        return
    yield from _against_manifest(folder, manifest)
    yield from _against(folder, reference)


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _MANIFEST).read_bytes())


def _against_manifest(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    found, listed = set(_files(folder)), set(manifest["files"])
    yield from (f"{folder.name}/{name} is not in the manifest" for name in sorted(found - listed))
    yield from (f"{folder.name}/{name} is in the manifest only" for name in sorted(listed - found))
    for name in sorted(found & listed):
        yield from (
            f"{folder.name}/{name}: {wrong}" for wrong in _against_entry(folder / name, manifest["files"][name])
        )


def _against_entry(file: Path, entry: dict[str, Any]) -> Iterator[str]:
    data, position, digests = file.read_bytes(), 0, list[str]()
    if len(data) != entry["bytes"]:
        yield f"{len(data)} bytes, {entry['bytes']} in the manifest"
    for length, digest in entry["segments"]:
        digests.append(xxhash.xxh3_128(data[position : position + length]).hexdigest())
        if digests[-1] != digest:
            yield f"bytes {position} to {position + length} are not what was written"
        position += length
    if position != len(data):
        yield f"segments of {position} bytes, a file of {len(data)}"
    folded = xxhash.xxh3_128(b"".join(map(bytes.fromhex, digests))).hexdigest()
    if entry["digest"] != folded:
        yield "its digest is not that of its segments' digests"


def _against(folder: Path, reference: Path) -> Iterator[str]:
    expected = _reference(reference)
    for name in sorted(expected.keys() | set(_files(folder))):
        file = folder / name
        if not file.is_file() or _sha(folder, name) != expected.get(name):
            yield f"{folder.name}/{name} differs from {reference.name}/{name}"


@cache
def _reference(folder: Path) -> dict[str, str]:
    return {name: _sha(folder, name) for name in _files(folder)}


def _sha(folder: Path, name: str) -> str:
    """What a setup writes for its trainer names the folder itself."""
    return hashlib.sha256((folder / name).read_bytes().replace(bytes(folder), b"HERE")).hexdigest()


def _files(folder: Path) -> list[str]:
    """All but the manifest, by their paths in the folder."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())
    return [name for name in names if name != _MANIFEST]
