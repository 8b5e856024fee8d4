"""The logits of two checkpoints' models: run in a process of their own, judged here."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoints.cast_source import main_dtype
from ..checkpoints.safetensors_folder import SafetensorsFolder
from ..checkpoints.torch_dist import TorchDistFolder
from ..jobs.errors import BadInputError
from ..jobs.state import Apart, LogitsFigures, Progress
from ..mapping.bindings import Model, held_in_fp32
from ..mapping.blocks import Plan, Task
from ..mapping.family import megatron_values
from ..mapping.quantization import quantized
from .config import read_record
from .context import JobContext
from .unverified import last_line, lost, not_verified

MOST_DIFFERENCE = 1e-3
"""Of two models' logits in fp32, as a part of their range: sums in another order come to some millionths."""


LONGEST = 256
"""Tokens of the longest prompt, where the models take so many."""

Side = dict[str, Any]
"""A model for the process that runs it. `stored`: the form of its weights; `tasks`: how HF's are made of them."""


def compare_logits(sides: tuple[Side, Side], model: Model, context: JobContext, total: int) -> LogitsFigures:
    """Run both. BadInputError where their logits are further apart than sums in another order explain.

    `total`: the bytes of both together, as progress counts them.
    """
    figures = run_logits(sides, (model, model), context, total)
    if found := apart(figures):
        raise not_verified("the logits of the two models", found, figures.bar)
    return figures


def run_logits(
    sides: tuple[Side, Side],
    models: tuple[Model, Model],
    context: JobContext,
    total: int,
    given: tuple[float | None, float | None] = (None, None),
) -> LogitsFigures:
    """How far they are apart, whatever that is: on tokens and places that both models know.

    Where their weights are stored in other forms and no limits are `given`, each is run again with its weights rounded
    as the other's are stored. A fixed limit cannot tell such a cast from a mistake: block fp8 moves the logits of
    SmolLM2-135M by 0.14 of their range, q and k permuted in one layer by 0.07, a rope scaling that is missing by 0.03.
    """
    asked = tuple(map(_asked, sides, reversed(sides))) if given == (None, None) else tuple(map(_plain, sides))
    request = {
        "sides": asked,
        "vocabulary": min(model.hf.positive("vocab_size") for model in models),
        "longest": min(LONGEST, *(model.hf.positive("max_position_embeddings", LONGEST) for model in models)),
        "device": "cuda" if context.gpu else "cpu",
    }

    def heard(part: float) -> None:
        context.report(Progress(phase="verifying", done_bytes=int(part * total), total_bytes=total))

    heard(0)
    figures = LogitsFigures.model_validate(_run_logits(json.dumps(request), heard))
    return figures.model_copy(update={"bar": _bar(figures, sides, given)})


def apart(figures: LogitsFigures, given: tuple[float | None, float | None] = (None, None)) -> str | None:
    """What they are where that is too far for the bar; None where it is not."""
    if any(one is not None and _within(one, given) for one in (figures, figures.rounded)):
        return None
    rounded = "" if figures.rounded is None else f"; once they are rounded alike {_told(figures.rounded)}"
    return f"{_told(figures)}{rounded}"


def _told(one: Apart) -> str:
    return (
        f"a largest difference of {one.max_abs_difference:.3g} in a range of {one.range:.3g}, "
        f"cosine {one.cosine:.6f}, the same first choice at {one.top1_agreement:.2%} of places"
    )


def _within(figures: Apart, given: tuple[float | None, float | None]) -> bool:
    part = figures.max_abs_difference / figures.range if figures.range else 0.0
    most, least = _limits(given)
    return part <= most and figures.top1_agreement >= least


def _bar(figures: LogitsFigures, sides: tuple[Side, Side], given: tuple[float | None, float | None]) -> str:
    most, least = _limits(given)
    limits = (
        f"a difference of at most {most:g} of the range, and the same first choice at {least:.0%} of places or more"
    )
    own, other = (_named(side["stored"]) for side in sides)
    if given != (None, None):
        return f"{limits}, as asked"
    if figures.rounded is None:
        return f"{limits}, since both are stored as {own}" if own == other else limits
    of, to = (own, other) if figures.rounded.side == 0 else (other, own)
    moved = figures.rounded.moved / figures.range if figures.range else 0.0
    return (
        f"{limits}, once the weights stored as {of} are rounded as the other's, {to}, "
        f"which alone moves the logits by {moved:.2g} of the range"
    )


def _limits(given: tuple[float | None, float | None]) -> tuple[float, float]:
    tolerance, least_top1 = given
    return MOST_DIFFERENCE if tolerance is None else tolerance, 1.0 if least_top1 is None else least_top1


def _plain(side: Side) -> Side:
    return {name: value for name, value in side.items() if name not in ("stored", "tasks", "kept")}


def _asked(side: Side, other: Side) -> Side:
    """The side with its rounding to the other's form, if that is another one that weights can be rounded to."""
    form = other["stored"]
    if form == side["stored"] or form["as"] not in ("BF16", "F16", "fp8"):
        return _plain(side)
    kept = {"kept": side["kept"]} if form["as"] != "fp8" else {}
    rounding = {"dtype": form["as"], **kept} if kept else {"block": form["block"], "names": form["names"]}
    tasks = {} if kept else {"tasks": _wanted(side.get("tasks", ()), frozenset(form["names"]))}
    return _plain(side) | {"rounding": rounding} | tasks


def _wanted(tasks: Iterable[Task], names: frozenset[str]) -> list[dict[str, Any]]:
    return [asdict(task) for task in tasks if task.target.name in names]


def _named(form: Mapping[str, Any]) -> str:
    return f"block-{form['as']}" if form["as"] == "fp8" else str(form["as"])


def hf_side(folder: Path, model: Model) -> Side:
    """An HF folder, for `compare_logits`."""
    return {"hf": str(folder), "stored": _stored(folder), "kept": sorted(held_in_fp32(model))}


def _stored(folder: Path) -> dict[str, Any]:
    """Quantized, and which matrices; or the dtype that holds most elements."""
    weights, way = SafetensorsFolder.open(folder), quantized(read_record(folder))
    if way is None:
        return {"as": main_dtype(weights)}
    scales = "_scale_inv"
    square = way.method == "fp8" and way.block[0] == way.block[1]
    names = [name.removesuffix(scales) for name in weights.tensors if name.endswith(scales)] if square else []
    return {"as": way.method if square or way.method != "fp8" else "fp8 blocks", "block": way.block[0], "names": names}


def megatron_side(folder: Path, model: Model, plan: Plan) -> Side:
    """An iteration folder, for `compare_logits`; `plan` is that of its export."""
    values = megatron_values(model.family, model.mcore, "verify")
    return {
        "megatron": str(folder),
        "values": asdict(values),
        "stored": {"as": main_dtype(TorchDistFolder.open(folder))},
        "kept": sorted(held_in_fp32(model)),
        "tasks": plan.tasks,
    }


def _run_logits(request: str, heard: Callable[[float], None]) -> dict[str, Any]:
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
) -> dict[str, Any] | None:
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
