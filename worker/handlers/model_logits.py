"""The logits of two checkpoints' models: run in a process of their own, judged here."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..jobs.errors import BadInputError
from ..jobs.state import LogitsFigures, Progress
from ..mapping.bindings import Model
from ..mapping.family import megatron_values
from .context import JobContext
from .unverified import last_line, lost, not_verified

MOST_DIFFERENCE = 1e-3
"""Of two models' logits in fp32, as a part of their range: sums in another order come to some millionths."""


LONGEST = 256
"""Tokens of the longest prompt, where the models take so many."""


def compare_logits(
    sides: tuple[dict[str, Any], dict[str, Any]], model: Model, context: JobContext, total: int
) -> LogitsFigures:
    """Run both. BadInputError where their logits are further apart than sums in another order explain.

    `total`: the bytes of both together, as progress counts them.
    """
    figures = run_logits(sides, (model, model), context, total)
    if found := apart(figures):
        raise not_verified("the logits of the two models", found, limits())
    return figures


def run_logits(
    sides: tuple[dict[str, Any], dict[str, Any]], models: tuple[Model, Model], context: JobContext, total: int
) -> LogitsFigures:
    """How far they are apart, whatever that is: on tokens and places that both models know."""
    request = {
        "sides": sides,
        "vocabulary": min(model.hf.positive("vocab_size") for model in models),
        "longest": min(LONGEST, *(model.hf.positive("max_position_embeddings", LONGEST) for model in models)),
        "device": "cuda" if context.gpu else "cpu",
    }

    def heard(part: float) -> None:
        context.report(Progress(phase="verifying", done_bytes=int(part * total), total_bytes=total))

    heard(0)
    return LogitsFigures.model_validate(_run_logits(json.dumps(request), heard))


def apart(figures: LogitsFigures, tolerance: float | None = None, least_top1: float | None = None) -> str | None:
    """What they are where that is too far; None where it is not. See `limits`."""
    part = figures.max_abs_difference / figures.range if figures.range else 0.0
    most, least = _limits(tolerance, least_top1)
    if part <= most and figures.top1_agreement >= least:
        return None
    return (
        f"a largest difference of {figures.max_abs_difference:.3g} in a range of {figures.range:.3g}, "
        f"cosine {figures.cosine:.6f}, the same first choice at {figures.top1_agreement:.2%} of places"
    )


def limits(tolerance: float | None = None, least_top1: float | None = None) -> str:
    """How far two models may be apart: by the part of their logits' range, and at how many places they agree."""
    most, least = _limits(tolerance, least_top1)
    return f"a difference of at most {most:g} of the range, and the same first choice at {least:.0%} of places or more"


def _limits(tolerance: float | None, least_top1: float | None) -> tuple[float, float]:
    most = MOST_DIFFERENCE if tolerance is None else tolerance
    return most, 1.0 if least_top1 is None else least_top1


def hf_side(folder: Path) -> dict[str, Any]:
    """An HF folder, for `compare_logits`."""
    return {"hf": str(folder)}


def megatron_side(folder: Path, model: Model) -> dict[str, Any]:
    """An iteration folder, for `compare_logits`."""
    values = megatron_values(model.family, model.mcore, "verify")
    return {"megatron": str(folder), "values": asdict(values)}


def _run_logits(request: str, heard: Callable[[float], None]) -> dict[str, float]:
    command = [sys.executable, "-P", "-m", "worker", "logits", str(os.getpid())]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
            try:
                figures = _hear_logits(process, request, heard)
            finally:
                process.kill()
        if figures is not None:
            return figures
        last = last_line(log)
    if process.returncode < 0:
        raise lost()
    raise BadInputError(
        "not_verified",
        "the logits of the two models",
        found=f"a model that could not be run here: {last}",
        expected="two models that this host can build and hold in fp32, one after the other",
        next_step="Verify `tensors` alone, or run it where Megatron runs this model.",
    )


def _hear_logits(
    process: "subprocess.Popen[bytes]", request: str, heard: Callable[[float], None]
) -> dict[str, float] | None:
    """None where it ends without an answer."""
    assert process.stdin is not None  # PIPE
    assert process.stdout is not None
    with suppress(BrokenPipeError), process.stdin as asking:
        asking.write(request.encode())
    for line in process.stdout:
        answer: Mapping[str, Any] = json.loads(line)
        if "figures" in answer:
            return answer["figures"]
        heard(answer["step"] / answer["of"])
    process.wait()
    return None
