"""Where a run does not fit its GPUs: how much is missing, and the nearest parallelism at which it fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ..jobs.errors import BadInputError
from ..jobs.setup_spec import Parallelism, Recompute
from .counts import Counts, counts
from .memory_estimate import MemoryEstimate, StageMemory, estimate
from .parallel_checks import is_possible
from .stages import fewest_gpus, uneven_stages
from .trainer_run import TrainerRun

_GIB = 2**30
_ROOM = 4 * _GIB
"""For CUDA's context, NCCL's buffers and what the allocator cannot use; a tenth of smaller GPUs."""
_TPS = (1, 2, 4, 8)
"""Up to the GPUs of one host."""
_DOUBLINGS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A parallelism at which the run fits, and what it takes there."""

    parallelism: Parallelism
    world_size: int
    recompute: Recompute
    estimate: MemoryEstimate


def refuse_too_large(run: TrainerRun, gpu_bytes: int) -> MemoryEstimate:
    """The estimate. BadInputError where its fullest rank needs more than a GPU has, with what would fit."""
    search = _Search(counts(run), gpu_bytes)
    found = estimate(run, search.counted)
    if search.has_room(found):
        return found
    raise BadInputError(
        "bad_request",
        f"memory of a rank at {_named(run.parallelism, run.world_size)}",
        found=_table(found.most),
        expected=f"at most {_gib(gpu_bytes - room_of(gpu_bytes))} of a GPU's {_gib(gpu_bytes)}",
        next_step=_advice(run, search),
    )


def fits(run: TrainerRun, found: MemoryEstimate, gpu_bytes: int) -> str:
    """What is said of a run that was not refused."""
    sizes = _named(run.parallelism, run.world_size)
    return f"{sizes} fits: an estimated {_table(found.most)}; a GPU has {_gib(gpu_bytes)}"


def room_of(gpu_bytes: int) -> int:
    """What is left free."""
    return min(_ROOM, gpu_bytes // 10)


def nearest_fitting(run: TrainerRun, gpu_bytes: int) -> Fit | None:
    """The fewest GPUs, from as many as asked for on; then the fewest changes; then the smaller sizes."""
    return _Search(counts(run), gpu_bytes).nearest(run)


@dataclass(frozen=True, slots=True)
class _Search:
    """More GPUs never take more memory of one: what does not fit the most is not looked at again."""

    counted: Counts
    gpu_bytes: int

    def has_room(self, found: MemoryEstimate) -> bool:
        return found.most.total + room_of(self.gpu_bytes) <= self.gpu_bytes

    def at(self, run: TrainerRun, sizes: Parallelism, world_size: int) -> Fit | None:
        """None where it is not possible, or does not fit."""
        other = replace(run, parallelism=sizes, world_size=world_size)
        if world_size % fewest_gpus(sizes) or not is_possible(other):
            return None
        found = estimate(other, self.counted)
        if not self.has_room(found):
            return None
        return Fit(parallelism=sizes, world_size=world_size, recompute=run.recompute, estimate=found)

    def nearest(self, run: TrainerRun) -> Fit | None:
        """The sequence is cut further only where nothing else helps."""
        asked = run.parallelism.cp_size
        return self._among(run, (asked,)) or self._among(run, tuple(asked * 2**power for power in range(1, 7)))

    def _among(self, run: TrainerRun, cp_sizes: tuple[int, ...]) -> Fit | None:
        most = run.world_size * 2**_DOUBLINGS
        fitting = [sizes for sizes in _candidates(run, cp_sizes) if self.at(run, sizes, most)]
        fitting.sort(key=lambda sizes: _distance(run.parallelism, sizes))
        for doubling in range(_DOUBLINGS + 1):
            for sizes in fitting:
                if fit := self.at(run, sizes, run.world_size * 2**doubling):
                    return fit
        return None


def _candidates(run: TrainerRun, cp_sizes: tuple[int, ...]) -> Iterator[Parallelism]:
    asked, values = run.parallelism, run.model.mcore
    experts = values.get("num_moe_experts")
    tps = sorted({asked.tp_size, *_TPS})
    pps = sorted({asked.pp_size, *(2**power for power in range(7) if 2**power <= values.positive("num_layers"))})
    eps = sorted({asked.ep_size, *(2**power for power in range(8) if isinstance(experts, int) and 2**power <= experts)})
    for tp, pp, ep, cp in product(tps, pps, eps, cp_sizes):
        update: dict[str, object] = {"tp_size": tp, "ep_size": ep, "cp_size": cp, "world_size": None}
        if tp == 1:
            update["sequence_parallel"] = None
        for stages, etp in product(_stages(asked, values.positive("num_layers"), pp), _etps(asked, tp, experts)):
            yield asked.model_copy(update={**update, **stages, "etp_size": etp})


def _stages(asked: Parallelism, layers: int, pp_size: int) -> Iterator[dict[str, object]]:
    """Stages as they were asked for; of another number, even ones, or uneven ones where layers do not divide."""
    if pp_size == asked.pp_size:
        yield {}
        return
    no_layout: dict[str, object] = {"pipeline_layout": None}
    ends = ((None, None),) if layers % pp_size == 0 else uneven_stages(layers, pp_size)
    for first, last in ends:
        yield {"pp_size": pp_size, "vpp_size": None, "first_stage_layers": first, "last_stage_layers": last} | no_layout


def _etps(asked: Parallelism, tp_size: int, experts: object) -> tuple[int | None, ...]:
    if asked.etp_size is not None or not isinstance(experts, int) or tp_size == 1:
        return (asked.etp_size,)
    return (1, None)


def _distance(asked: Parallelism, found: Parallelism) -> tuple[int, ...]:
    names = ("tp_size", "pp_size", "cp_size", "ep_size")
    changed = sum(getattr(asked, name) != getattr(found, name) for name in names)
    size = found.tp_size * found.pp_size * found.cp_size * found.ep_size
    return changed, size, found.pp_size, found.etp_size or found.tp_size


def _advice(run: TrainerRun, search: _Search) -> str:
    """Only what fits by the estimate; recomputation where it saves GPUs, or changes."""
    fit = search.nearest(run)
    again = None if run.recompute == "full" else search.nearest(replace(run, recompute="full"))
    if fit and again and _cost(run, again) >= _cost(run, fit):
        again = None
    offers = [_offer(run, one) for one in (fit, again) if one]
    return f"{'; or '.join(offers)}." if offers else _nothing_fits(run)


def _cost(run: TrainerRun, fit: Fit) -> tuple[int, ...]:
    return fit.world_size, *_distance(run.parallelism, fit.parallelism)


def _offer(run: TrainerRun, fit: Fit) -> str:
    more = "" if fit.recompute == run.recompute else f" --recompute {fit.recompute}"
    return f"{_named(fit.parallelism, fit.world_size, more)} fits, with {_gib(fit.estimate.most.total)}"


def _nothing_fits(run: TrainerRun) -> str:
    smaller = ", lower micro_batch_size" if run.micro_batch_size > 1 else ""
    return (
        f"No parallelism up to {2**_DOUBLINGS:,} times as many GPUs fits, not with recompute `full` either: "
        f"shorten sequence_length{smaller}, or take larger GPUs."
    )


def _named(sizes: Parallelism, world_size: int, more: str = "") -> str:
    """As the command line has it; the GPUs as an option only where they are not the fewest."""
    named = [("--pp", sizes.pp_size), ("--vpp", sizes.vpp_size), ("--cp", sizes.cp_size), ("--ep", sizes.ep_size)]
    given = [("--tp", sizes.tp_size), *((name, size) for name, size in named if size != 1), ("--etp", sizes.etp_size)]
    given += [("--first-stage-layers", sizes.first_stage_layers), ("--last-stage-layers", sizes.last_stage_layers)]
    layout = "" if sizes.pipeline_layout is None else f" --pipeline-layout '{sizes.pipeline_layout}'"
    text = " ".join(f"{name} {size}" for name, size in given if size is not None) + layout + more
    if world_size != fewest_gpus(sizes):
        return f"{text} --world-size {world_size}"
    return f"{text} on {world_size:,} GPU{'s' if world_size > 1 else ''}"


def _table(most: StageMemory) -> str:
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    listed = ", ".join(f"{name} {_gib(getattr(most, name))}" for name in parts if getattr(most, name))
    return f"{_gib(most.total)} on a rank of stage {most.stage}: {listed}"


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
