"""A folder held against the manifest in it: every byte of every file."""

from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from ..checkpoints.extents import Run, Span, TargetFile
from ..checkpoints.hf_folder import read_json_object
from ..checkpoints.publish import MANIFEST
from ..jobs.errors import BadInputError
from ..jobs.misreading import Misreading
from ..jobs.state import VerifyResult
from .context import JobContext
from .unverified import differs, some
from .whole_read import read_all


class _Listed(BaseModel):
    """A file in a manifest."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    segments: tuple[tuple[int, str], ...]


class _Manifest(BaseModel):
    """What of a manifest says how its folder must be."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, _Listed]
    tensors: dict[str, str]


def against_manifest(folder: Path, context: JobContext) -> VerifyResult:
    """BadInputError names the first bytes that are not what was written, and files that are gone."""
    manifest = _read_manifest(folder)
    for name, listed in manifest.files.items():
        _check_size(folder / name, listed)
    targets = tuple(_listed_file(folder, name, listed) for name, listed in manifest.files.items() if listed.bytes)
    total = sum(listed.bytes for listed in manifest.files.values())
    read = read_all(targets, (folder,), context, total)
    wrong = [
        f"{folder / name}, bytes {segment.offset:,} to {segment.offset + segment.length:,}"
        for name, listed in manifest.files.items()
        if listed.bytes
        for segment, (_, digest) in zip(read.get(name, ()), listed.segments, strict=True)
        if segment.digest != digest
    ]
    if wrong:
        raise differs(f"folder {folder}", f"other bytes than were written: {some(wrong)}", "the bytes of its manifest")
    return VerifyResult(files=len(manifest.files), tensors=len(manifest.tensors), bytes=total, seconds=0)


def _read_manifest(folder: Path) -> _Manifest:
    try:
        text = read_json_object(folder / MANIFEST, "a manifest, as Ferry leaves it in what it writes")
        manifest = _Manifest.model_validate(text)
    except ValidationError as error:
        read = Misreading.first_of(error, _Manifest)
        found = f"no files and digests in it: {read.field} is {read.found}, not {read.expected}"
        raise _bad_manifest(folder, found) from error
    for name, listed in manifest.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise _bad_manifest(folder, f"file name {name!r}, which leads out of the folder")
        if sum(length for length, _ in listed.segments) != listed.bytes:
            raise _bad_manifest(folder, f"segments of {name!r} that do not make up its {listed.bytes:,} bytes")
    return manifest


def _check_size(path: Path, listed: _Listed) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != listed.bytes:
        raise differs(
            f"file {path}",
            "no such file" if found is None else f"{found:,} bytes",
            f"{listed.bytes:,} bytes, as its manifest says",
        )


def _listed_file(folder: Path, name: str, listed: _Listed) -> TargetFile:
    spans: list[Span] = []
    offset = 0
    for length, _ in listed.segments:
        spans.append(Span(offset=offset, extents=(Run(folder / name, offset, length),)))
        offset += length
    return TargetFile(path=name, spans=tuple(spans))


def _bad_manifest(folder: Path, found: str) -> BadInputError:
    return BadInputError(
        "bad_checkpoint",
        str(folder / MANIFEST),
        found=found,
        expected="a manifest, as Ferry leaves it in what it writes",
        next_step="Compare the folder with its source: `ferry verify A B`.",
    )
