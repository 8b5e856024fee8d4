"""Megatron-Core's `pipeline_model_parallel_layout`: which layers each stage holds, written out by hand.

`Et*3|(tt|)*2,m|L`: E the embedding, t a decoder layer, m multi-token prediction, L the loss; `|` between stages.
Source: `PipelineParallelLayerLayout` and `TransformerConfig.__post_init__` of megatron-core 0.19.
"""

import re
from collections.abc import Iterator
from itertools import accumulate, pairwise

from ..jobs.setup_spec import Parallelism
from .problem import Problem
from .trainer_run import TrainerRun

_FIELD = "parallelism.pipeline_layout"
_REPEATED = (re.compile(r"\(([^()]+)\)\*(\d{1,3})(?!\d)"), re.compile(r"([EtmL|])\*(\d{1,3})(?!\d)"))
_STAGES = re.compile(r"[EtmL|]+")


def stages_of(text: str) -> tuple[str, ...] | None:
    """Each stage's letters, chunk by chunk: all stages' first ones come first. None where it is not understood."""
    written = text.replace(",", "")
    for repeated in _REPEATED:
        written = repeated.sub(lambda found: found[1] * int(found[2]), written)
    return tuple(written.split("|")) if _STAGES.fullmatch(written) else None


def with_its_chunks(sizes: Parallelism) -> Parallelism:
    """With the number of chunks that the layout comes to, where that was not said."""
    stages = stages_of(sizes.pipeline_layout or "") or ()
    chunks = len(stages) // sizes.pp_size
    return sizes.model_copy(update={"vpp_size": chunks}) if sizes.vpp_size is None and chunks > 1 else sizes


def chunks_of_layout(text: str, pp_size: int) -> tuple[tuple[range, ...], ...]:
    """For each stage, its chunks' decoder layers. The layout must be possible."""
    stages = stages_of(text) or ()
    ends = accumulate((stage.count("t") for stage in stages), initial=0)
    layers = tuple(range(first, end) for first, end in pairwise(ends))
    return tuple(layers[stage::pp_size] for stage in range(pp_size))


def stage_of_prediction(text: str, pp_size: int) -> int:
    """The stage that predicts further tokens; the last where none does."""
    return next((at % pp_size for at, stage in enumerate(stages_of(text) or ()) if "m" in stage), pp_size - 1)


def layout_problems(run: TrainerRun) -> Iterator[Problem]:
    """What Megatron-Core asserts of a layout."""
    sizes, values = run.parallelism, run.model.mcore
    text = sizes.pipeline_layout or ""
    stages = stages_of(text)
    if stages is None:
        yield Problem(_FIELD, repr(text), "stages of E, t, m and L between `|`, such as Ettt|(tt|)*2L", "Mend it.")
        return
    if sizes.first_stage_layers is not None or sizes.last_stage_layers is not None:
        yield Problem(_FIELD, text, "none beside first_stage_layers or last_stage_layers", "Leave one out.")
    if values.get("hybrid_layer_pattern") is not None:
        expected = "none in a hybrid model, whose stages Megatron-Core cuts by `|` in the pattern alone"
        yield Problem(_FIELD, text, expected, "Leave it out.")
    if sizes.pp_size == 1 or len(stages) != sizes.pp_size * (sizes.vpp_size or 1):
        found = f"{len(stages)} stages for pp_size {sizes.pp_size}"
        yield Problem(_FIELD, found, "pp_size above 1, times vpp_size, of them")
    for letter, what, count in (
        ("E", "the embedding", 1),
        ("t", "decoder layers", values.positive("num_layers")),
        ("m", "layers of multi-token prediction", values.integer("mtp_num_layers", 0)),
        ("L", "the loss", 1),
    ):
        found = sum(stage.count(letter) for stage in stages)
        if found != count:
            yield Problem(_FIELD, f"{letter} {found} times", f"{count}: {what}", "Mend it.")
    yield from _order("".join(stages), stages, sizes.pp_size)


def _order(letters: str, stages: tuple[str, ...], pp_size: int) -> Iterator[Problem]:
    if not (letters.startswith("E") and letters.endswith("L")):
        yield Problem(_FIELD, letters, "E first and L last", "Mend it.")
    if "t" in letters.partition("m")[2]:
        yield Problem(_FIELD, letters, "all decoder layers before multi-token prediction", "Mend it.")
    predicting = [at for at, stage in enumerate(stages) if "m" in stage]
    if predicting and (len(predicting) > 1 or predicting[0] < len(stages) - pp_size):
        expected = "all of multi-token prediction in one stage, in its last chunk"
        yield Problem(_FIELD, f"m in {len(predicting)} of {len(stages)} chunks", expected, "Mend it.")
