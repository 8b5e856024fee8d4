"""The `verify` job: a folder against its manifest, or the tensors of two checkpoints against each other."""

import time
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..checkpoints.extents import Run, Span, TargetFile
from ..checkpoints.hf_folder import read_json_object
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.publish import MANIFEST
from ..checkpoints.watched import Watch
from ..jobs.errors import BadInputError
from ..jobs.spec import VerifySpec
from ..jobs.state import LogitsFigures, VerifyResult
from ..mapping.bindings import Model
from .context import Answer, JobContext
from .export_checkpoint import open_checkpoint
from .hf_source import is_hf, open_hf
from .model_logits import apart, hf_side, limits, megatron_side, run_logits
from .two_checkpoints import TwoCheckpoints, read_all
from .unverified import NAMED, differs, refuse_older_format, some


def run(spec: VerifySpec, context: JobContext) -> Answer:
    """Read everything once; BadInputError names what is not as it should be."""
    started = time.monotonic()
    watch = Watch()
    locations = watch.over(context.locations)
    source = locations.resolve_source(spec.source)
    _refuse_logits(spec)
    if spec.against is not None:
        against = locations.resolve_source(spec.against)
        hf_config = locations.resolve_source(spec.hf_config) if spec.hf_config else None
        result = _against_another(source, against, hf_config, spec, context, watch)
    else:
        result = _against_manifest(source, context, watch)
    return Answer(result=result.model_copy(update={"seconds": round(time.monotonic() - started, 4)}))


def _refuse_logits(spec: VerifySpec) -> None:
    if not spec.logits and (spec.logits_tolerance, spec.least_top1) != (None, None):
        raise BadInputError(
            "bad_request",
            "spec field logits_tolerance or least_top1",
            found="no comparison of logits",
            expected="`ferry verify A B --logits` with them",
            next_step="Ask for `logits`, or leave them out.",
        )
    if spec.logits and spec.against is None:
        raise BadInputError(
            "bad_request",
            "spec field logits",
            found="no other checkpoint",
            expected="two: `ferry verify A B --logits`",
            next_step="Name the checkpoint to compare with, or leave `logits` out.",
        )


def _against_another(
    one: Path, other: Path, hf_config: Path | None, spec: VerifySpec, context: JobContext, watch: Watch
) -> VerifyResult:
    """The same bits, or with `logits` models that say the same: then tensors that differ are told, and no fault."""
    both = TwoCheckpoints.open(one, other, hf_config, allow_pickle=context.locations.allow_pickle, watch=watch)
    if not spec.logits:
        both.refuse_unlike()
    differing = (*both.other_values(context), *both.unlike)
    of = f"{len(differing)} of {len(both.shared)} tensors with other values: {some(differing)}"
    logits: LogitsFigures | None = None
    if spec.logits:
        logits = _logits(one, other, spec, hf_config, context)
        both.refuse_changed()
        if found := apart(logits, spec.logits_tolerance, spec.least_top1):
            raise _other_logits(one, other, f"{found}; {of}" if differing else found, spec)
    elif differing:
        raise differs(f"checkpoints {one} and {other}", of, "the same bits in every tensor")
    return VerifyResult(
        files=both.files,
        tensors=len(both.shared),
        bytes=both.bytes,
        seconds=0,
        differing=len(differing),
        first_differing=differing[:NAMED],
        logits=logits,
    )


def _logits(one: Path, other: Path, spec: VerifySpec, hf_config: Path | None, context: JobContext) -> LogitsFigures:
    (side, model), (other_side, other_model) = (_described(place, hf_config, context) for place in (one, other))
    return run_logits((side, other_side), (model, other_model), context, sum(map(_bytes_in, (one, other))))


def _other_logits(one: Path, other: Path, found: str, spec: VerifySpec) -> BadInputError:
    return BadInputError(
        "not_verified",
        f"the logits of {one} and {other}",
        found=found,
        expected=limits(spec.logits_tolerance, spec.least_top1),
        next_step="Where their tensors differ by intent, say how far the models may be apart: "
        "`ferry verify A B --logits --tolerance 0.05 --top1 0.9`.",
    )


def _bytes_in(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _described(place: Path, hf_config: Path | None, context: JobContext) -> tuple[dict[str, Any], Model]:
    if is_hf(place):
        return hf_side(place), open_hf(place).model
    refuse_older_format(iteration_folder(place), "logits")
    opened = open_checkpoint(place, hf_config, allow_pickle=context.locations.allow_pickle)
    model = opened.described.model
    return megatron_side(iteration_folder(place), model), model


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


def _against_manifest(folder: Path, context: JobContext, watch: Watch) -> VerifyResult:
    try:
        return _as_its_manifest_says(folder, context)
    except BadInputError:
        watch.seen.refuse_changed()  # Then nothing is wrong with what was written.
        raise


def _as_its_manifest_says(folder: Path, context: JobContext) -> VerifyResult:
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
        raise _bad_manifest(folder, f"no files and digests in it ({error.errors()[0]['msg']})") from error
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
