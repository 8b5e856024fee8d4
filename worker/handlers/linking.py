"""Files that an output shares with a folder that is there: hard links, and what the manifest says of them."""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..checkpoints.extents import Run, Span, TargetFile
from ..checkpoints.publish import published_manifest
from ..engine.convert import read_segments
from ..engine.digests import FileDigest, file_digest
from ..engine.processes import CopyOptions
from ..jobs.errors import BadInputError

_SEGMENT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """A file that is there, and its digests; None where nobody has read it yet."""

    path: Path
    bytes: int
    digest: FileDigest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What a manifest says of its folder's files and tensors."""

    document: Mapping[str, Any]
    files: Mapping[str, FileDigest]
    tensors: Mapping[str, str]


def listed_in(folder: Path) -> Listed | None:
    """None where there is no manifest that Ferry wrote."""
    try:
        document = cast("Mapping[str, Any]", published_manifest(folder) or {})
        files = {
            name: FileDigest(bytes=one["bytes"], digest=one["digest"], segments=tuple(map(tuple, one["segments"])))
            for name, one in document["files"].items()
        }
        return Listed(document=document, files=files, tensors=dict(document["tensors"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def linked(path: Path, listed: FileDigest | None) -> Linked:
    """`listed` holds where the file has its size."""
    size = path.stat().st_size
    return Linked(path=path, bytes=size, digest=listed if listed is not None and listed.bytes == size else None)


def link_files(
    folder: Path, files: Mapping[str, Linked], options: CopyOptions, report: Callable[[int], None]
) -> dict[str, FileDigest]:
    """Make the links; what they hold is read where no digest is known."""
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file.path, path)
        except OSError as error:
            raise _no_link(file.path, folder, error) from error
    unread = tuple(_as_target(name, file) for name, file in files.items() if file.digest is None)
    read = read_segments(unread, options, report, segment_bytes=_SEGMENT_BYTES) if unread else {}
    known = {name: file.digest for name, file in files.items() if file.digest is not None}
    return known | {file.path: file_digest(read.get(file.path, ())) for file in unread}


def _as_target(name: str, file: Linked) -> TargetFile:
    spans = (Span(offset=0, extents=(Run(file.path, 0, file.bytes),)),) if file.bytes else ()
    return TargetFile(path=name, spans=spans)


def _no_link(path: Path, folder: Path, error: OSError) -> BadInputError:
    why = "another file system" if error.errno == errno.EXDEV else str(error.strerror)
    return BadInputError(
        "bad_location",
        f"a hard link to {path}",
        found=f"{why}, seen from {folder.parent}",
        expected="one file system, and a file of this user",
        next_step="Choose a target beside the source, or let the directory refer to it: `--base reference`.",
    )
