"""The `verify` job: a folder against its manifest, or the tensors of two checkpoints against each other."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..checkpoints.extents import Item, Run, Span, TargetFile
from ..checkpoints.hf_folder import CONFIG, read_json_object
from ..checkpoints.identity import FileIdentity, identities, refuse_changed
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.publish import MANIFEST
from ..checkpoints.safetensors_folder import whole_tensors
from ..engine.convert import items_of, read_segments, refuse_unequal
from ..engine.copy import Segment
from ..engine.processes import CopyOptions
from ..jobs.errors import BadInputError
from ..jobs.spec import VerifySpec
from ..jobs.state import LogitsFigures, Progress, VerifyResult
from ..mapping.bindings import Model
from ..mapping.plan import plan_import
from .context import Answer, JobContext
from .export_checkpoint import open_checkpoint
from .hf_source import open_hf, open_tensors
from .model_logits import compare_logits, hf_side, megatron_side
from .unverified import refuse_older_format

_NAMED = 3
"""Of many differences, so many are named."""
_WHOLE = 2**63
"""No tensor is cut: two checkpoints cut theirs at different places."""


def run(spec: VerifySpec, context: JobContext) -> Answer:
    """Read everything once; BadInputError names what is not as it should be."""
    started = time.monotonic()
    source = context.locations.resolve_source(spec.source)
    logits: LogitsFigures | None = None
    if spec.against is None and spec.logits:
        raise BadInputError(
            "bad_request",
            "spec field logits",
            found="no other checkpoint",
            expected="two: `ferry verify A B --logits`",
            next_step="Name the checkpoint to compare with, or leave `logits` out.",
        )
    if spec.against is None:
        files, tensors, bytes = _against_manifest(source, context)
    else:
        against = context.locations.resolve_source(spec.against)
        if spec.logits:
            logits = _logits(source, against, spec, context)
        files, tensors, bytes = _against_another(source, against, spec, context)
    seconds = round(time.monotonic() - started, 4)
    return Answer(result=VerifyResult(files=files, tensors=tensors, bytes=bytes, seconds=seconds, logits=logits))


def _logits(one: Path, other: Path, spec: VerifySpec, context: JobContext) -> LogitsFigures:
    hf_config = context.locations.resolve_source(spec.hf_config) if spec.hf_config else None
    described = [_described(place, hf_config, context) for place in (one, other)]
    sides = (described[0][0], described[1][0])
    return compare_logits(sides, described[0][1], context, sum(map(_bytes_in, (one, other))))


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


def _against_manifest(folder: Path, context: JobContext) -> tuple[int, int, int]:
    manifest = _read_manifest(folder)
    for name, listed in manifest.files.items():
        _check_size(folder / name, listed)
    targets = tuple(_listed_file(folder, name, listed) for name, listed in manifest.files.items() if listed.bytes)
    total = sum(listed.bytes for listed in manifest.files.values())
    read = _read(targets, (folder,), context, total, segment_bytes=_WHOLE)
    wrong = [
        f"{folder / name}, bytes {segment.offset:,} to {segment.offset + segment.length:,}"
        for name, listed in manifest.files.items()
        if listed.bytes
        for segment, (_, digest) in zip(read.get(name, ()), listed.segments, strict=True)
        if segment.digest != digest
    ]
    if wrong:
        raise _differs(
            f"folder {folder}", f"other bytes than were written: {_some(wrong)}", "the bytes of its manifest"
        )
    return len(manifest.files), len(manifest.tensors), total


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
        raise _differs(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A checkpoint as the HF tensors that it holds."""

    place: Path
    items: Mapping[str, Item]
    left_out: frozenset[str]
    """HF tensors that a Megatron checkpoint of the same model does not hold."""
    sources: tuple[FileIdentity, ...]


def _against_another(one: Path, other: Path, spec: VerifySpec, context: JobContext) -> tuple[int, int, int]:
    hf_config = context.locations.resolve_source(spec.hf_config) if spec.hf_config else None
    formats = [is_hf(place) for place in (one, other)]
    allow_pickle = context.locations.allow_pickle
    sides = [
        _hf_side(place, mapped=not all(formats))
        if is_hf
        else _megatron_side(place, hf_config, allow_pickle=allow_pickle)
        for place, is_hf in zip((one, other), formats, strict=True)
    ]
    _same_names(sides)
    names = tuple(name for name in sides[0].items if name in sides[1].items)
    for name in names:
        _same_form(name, sides)
    targets = tuple(_as_file(number, side, names) for number, side in enumerate(sides))
    total = sum(file.size for file in targets)
    read = _read(targets, (one, other), context, total, segment_bytes=_WHOLE)
    for side in sides:
        refuse_changed(side.sources)
    ours, theirs = (_by_label(read.get(file.path, ())) for file in targets)
    wrong = [name for name in names if ours.get(name) != theirs.get(name)]
    if wrong:
        raise _differs(
            f"checkpoints {one} and {other}",
            f"{len(wrong)} of {len(names)} tensors with other values: {_some(wrong)}",
            "the same bits in every tensor",
        )
    files = len({identity.path for side in sides for identity in side.sources})
    return files, len(names), total


def is_hf(place: Path) -> bool:
    return (place / CONFIG).exists() and any(place.glob("*.safetensors"))


def _hf_side(place: Path, *, mapped: bool) -> _Side:
    weights = open_tensors(place)
    left_out: frozenset[str] = frozenset()
    if mapped:
        plan = plan_import(open_hf(place).model, weights.tensors)
        refuse_unequal(plan.must_be_equal, weights)
        left_out = frozenset(left.name for left in plan.dropped)
    items = {
        name: Item(
            name=name,
            index=(),
            stack=(),
            dtype=tensor.dtype,
            shape=tensor.shape,
            extents=weights.whole(name),
        )
        for name, tensor in weights.tensors.items()
    }
    return _Side(
        place=place, items=items, left_out=left_out, sources=identities((place / CONFIG, *weights.files_of(items)))
    )


def _megatron_side(place: Path, hf_config: Path | None, *, allow_pickle: bool) -> _Side:
    opened = open_checkpoint(place, hf_config, allow_pickle=allow_pickle)
    items = {item.name: item for item in whole_tensors(items_of(opened.plan, opened.weights))}
    return _Side(place=place, items=items, left_out=frozenset(), sources=identities(opened.files))


def _same_names(sides: Sequence[_Side]) -> None:
    for one, other in (sides, sides[::-1]):
        alone = [name for name in one.items if name not in other.items and name not in one.left_out]
        if alone:
            raise _differs(
                f"checkpoint {other.place}",
                f"no tensor {_some(alone)}, of which {one.place} has {len(alone)}",
                "the same tensors in both",
            )


def _same_form(name: str, sides: Sequence[_Side]) -> None:
    one, other = (f"{side.items[name].dtype} {list(side.items[name].shape)}" for side in sides)
    if one != other:
        raise _differs(f"HF tensor {name!r}", f"{one} in {sides[0].place} and {other} in {sides[1].place}", "one form")


def _as_file(number: int, side: _Side, names: Iterable[str]) -> TargetFile:
    """The tensors one after the other, as if they were one file."""
    spans: list[Span] = []
    offset = 0
    for name in names:
        item = side.items[name]
        if item.nbytes:
            spans.append(Span(offset=offset, extents=item.extents, label=name))
            offset += item.nbytes
    return TargetFile(path=str(number), spans=tuple(spans))


def _by_label(segments: Iterable[Segment]) -> dict[str | None, str]:
    return {segment.label: segment.digest for segment in segments}


def _read(
    files: tuple[TargetFile, ...], places: tuple[Path, ...], context: JobContext, total: int, *, segment_bytes: int
) -> dict[str, tuple[Segment, ...]]:
    limits = tuple(dict.fromkeys(limit for place in places for limit in context.rules.io_limits(place, place)))
    options = CopyOptions(processes=context.copy_processes, limits=limits)
    return read_segments(files, options, _reading(context, total), segment_bytes=segment_bytes)


def _reading(context: JobContext, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        context.report(Progress(phase="reading", done_bytes=min(done, total), total_bytes=total))

    return report


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _differs(thing: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "not_verified",
        thing,
        found=found,
        expected=expected,
        next_step="Do not use it; make it anew from its source, and check the disk if that repeats.",
    )


def _bad_manifest(folder: Path, found: str) -> BadInputError:
    return BadInputError(
        "bad_checkpoint",
        str(folder / MANIFEST),
        found=found,
        expected="a manifest, as Ferry leaves it in what it writes",
        next_step="Compare the folder with its source: `ferry verify A B`.",
    )
