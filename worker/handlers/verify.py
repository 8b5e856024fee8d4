"""The `verify` job: a folder against its manifest, or the tensors of two checkpoints against each other."""

import time
from pathlib import Path
from typing import Any

from ..checkpoints.iterations import iteration_folder
from ..checkpoints.watched import Watch
from ..jobs.errors import BadInputError
from ..jobs.spec import VerifySpec
from ..jobs.state import LogitsFigures, VerifyResult
from ..mapping.bindings import Model
from .context import Answer, JobContext
from .folder_manifest import against_manifest
from .hf_source import is_hf, open_hf, refuse_hf_config
from .megatron_source import open_checkpoint
from .model_logits import apart, hf_side, megatron_side, run_logits
from .two_checkpoints import TwoCheckpoints
from .unverified import NAMED, differs, refuse_older_format, some


def run(spec: VerifySpec, context: JobContext) -> Answer:
    """Read everything once; BadInputError names what is not as it should be."""
    started = time.monotonic()
    watch = Watch()
    locations = watch.over(context.locations)
    source = locations.resolve_source(spec.source)
    if spec.against is not None:
        against = locations.resolve_source(spec.against)
        hf_config = locations.resolve_source(spec.hf_config) if spec.hf_config else None
        result = _against_another(source, against, hf_config, spec, context, watch)
    else:
        result = _against_manifest(source, context, watch)
    return Answer(result=result.model_copy(update={"seconds": round(time.monotonic() - started, 4)}))


def _against_another(
    one: Path, other: Path, hf_config: Path | None, spec: VerifySpec, context: JobContext, watch: Watch
) -> VerifyResult:
    """The same bits, or with `logits` models that say the same: then tensors that differ are told, and no fault."""
    refuse_hf_config(hf_config, one, other)
    both = TwoCheckpoints.open(one, other, hf_config, allow_pickle=context.locations.allow_pickle, watch=watch)
    if not spec.logits:
        both.refuse_unlike()
    differing = (*both.other_values(context), *both.unlike)
    of = f"{len(differing)} of {len(both.shared)} tensors with other values: {some(differing)}"
    logits: LogitsFigures | None = None
    if spec.logits:
        logits = _logits(one, other, spec, hf_config, context)
        both.refuse_changed()
        if found := apart(logits, (spec.logits_tolerance, spec.least_top1)):
            raise _other_logits(one, other, f"{found}; {of}" if differing else found, logits.bar)
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
    given = (spec.logits_tolerance, spec.least_top1)
    total = sum(map(_bytes_in, (one, other)))
    return run_logits((side, other_side), (model, other_model), context, total, given)


def _other_logits(one: Path, other: Path, found: str, bar: str) -> BadInputError:
    return BadInputError(
        "not_verified",
        f"the logits of {one} and {other}",
        found=found,
        expected=bar,
        next_step="Where their tensors differ by intent, say how far the models may be apart: "
        "`ferry verify A B --logits --tolerance 0.05 --top1 0.9`.",
    )


def _bytes_in(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def _described(place: Path, hf_config: Path | None, context: JobContext) -> tuple[dict[str, Any], Model]:
    if is_hf(place):
        model = open_hf(place).model
        return hf_side(place, model), model
    refuse_older_format(iteration_folder(place), "logits")
    opened = open_checkpoint(place, hf_config, allow_pickle=context.locations.allow_pickle)
    model = opened.described.model
    return megatron_side(iteration_folder(place), model, opened.plan), model


def _against_manifest(folder: Path, context: JobContext, watch: Watch) -> VerifyResult:
    try:
        return against_manifest(folder, context)
    except BadInputError:
        watch.seen.refuse_changed()  # Then nothing is wrong with what was written.
        raise
