"""Activations of a pipeline stage: of all micro-batches that are on their way through it, and what is computed again.

Micro-batches in flight are those of Megatron-Core's schedules (`pipeline_parallel.schedules`): 1F1B, interleaved where
a stage has several chunks. Recomputation `full` keeps each layer's input (`recompute_method` uniform, one layer).
"""

from dataclasses import dataclass

from .census import Place
from .counts import Counts
from .layer_activations import LayerActivations
from .layer_kinds import layer_kinds
from .shares import one_rank
from .trainer_run import TrainerRun

_LAST_NORM = 2
"""Hidden states before and after the norm behind the last layer; Megatron's own estimate has them too."""
_DIRECTED_BYTES = 3 * 4
"""W, B A and their sum, in fp32 (`integration.adapted.AdaptedDirection`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch."""

    layers: tuple[int, ...]
    """Kept by each decoder layer until its backward pass."""
    again: tuple[int, ...]
    """Computed again for each, one layer at a time."""
    prediction: int
    """Of all layers of multi-token prediction."""
    last_norm: int
    directed: int
    """Of DoRA, while it measures a layer."""

    def of_stage(self, stage: int, chunks: tuple[range, ...], stages: int, *, predicts: bool) -> int:
        """`chunks`: the decoder layers of each of its model chunks; `predicts`: further tokens than the next."""
        in_flight = stages - stage if len(chunks) == 1 else 2 * (stages - stage - 1) + (len(chunks) - 1) * stages + 1
        kept = sum(self.layers[layer] for chunk in chunks for layer in chunk)
        working = max((self.again[layer] for chunk in chunks for layer in chunk), default=0)
        behind = (self.prediction if predicts else 0) + (self.last_norm if stage == stages - 1 else 0)
        return in_flight * kept // len(chunks) + working + behind + self.directed


def activations(run: TrainerRun, counted: Counts) -> Activations:
    """Of every layer, whichever stage holds it."""
    of_token = LayerActivations(run)
    token_bytes = run.sequence_length * run.micro_batch_size / run.parallelism.cp_size * run.item_bytes
    kinds = layer_kinds(run.model.mcore)
    whole = {kind: of_token.of(kind) for kind in set(kinds)}
    scores = {kind: of_token.scores(kind) for kind in set(kinds)}
    adapted = _adapted(run, counted, of_token.spread)
    each = [whole[kind] + adapted.get(layer, 0.0) for layer, kind in enumerate(kinds)]
    depths = run.model.mcore.integer("mtp_num_layers", 0)
    one = whole[kinds[-1]] + of_token.around_prediction()
    hidden = of_token.hidden / of_token.spread
    match run.recompute:
        case "full":
            kept, again, prediction = [hidden] * len(kinds), each, 2 * hidden * depths
        case "selective":
            kept, again, prediction = each, [scores[kind] for kind in kinds], one * depths
        case "none":
            kept, again, prediction = each, [0.0] * len(kinds), one * depths
    return Activations(
        layers=tuple(int(token_bytes * count) for count in kept),
        again=tuple(int(token_bytes * count) for count in again),
        prediction=int(token_bytes * (prediction + adapted.get("mtp", 0.0))),
        last_norm=int(token_bytes * _LAST_NORM * hidden),
        directed=_directed(run, counted),
    )


def _adapted(run: TrainerRun, counted: Counts, spread: int) -> dict[Place, float]:
    """Of a token: what A makes of it, and with DoRA the sum that the magnitudes multiply."""
    if run.peft is None:
        return {}
    chosen = run.model.mcore.integer("moe_router_topk", 0) / spread  # tokens of an expert's rank, to one of the run's
    each: dict[Place, float] = {}
    for place, widths in counted.adapted.items():
        each[place] = widths.ranks + widths.expert_ranks * chosen * run.etp_size
        if run.peft.type == "dora":
            of = {"cut": 1 / run.parallelism.tp_size, "whole": 1 / spread, "expert cut": chosen}
            each[place] += sum(count * of.get(share, chosen * run.etp_size) for share, count in widths.outputs.items())
    return each


def _directed(run: TrainerRun, counted: Counts) -> int:
    """Bytes: DoRA's W + B A of one layer at a time, whose rows it measures."""
    if run.peft is None or run.peft.type != "dora":
        return 0
    return _DIRECTED_BYTES * max((one_rank(run, share, count) for share, count in counted.largest.items()), default=0)
