"""Where a run does not fit its GPUs: how much is missing, and the nearest parallelism at which it fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ..jobs.errors import BadInputError
from ..jobs.setup_spec import Parallelism
from .census import census
from .memory_estimate import MemoryEstimate, StageMemory, estimate
from .parallel_checks import is_possible
from .stages import fewest_gpus
from .trainer_run import TrainerRun

_GIB = 2**30
_ROOM = 4 * _GIB
"""For CUDA's context, NCCL's buffers and what the allocator cannot use; a tenth of smaller GPUs."""
_MOST_TP = 8
"""GPUs of one host."""
_DOUBLINGS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A parallelism at which the run fits, and what it takes there."""

    parallelism: Parallelism
    world_size: int
    estimate: MemoryEstimate


def refuse_too_large(run: TrainerRun, gpu_bytes: int) -> MemoryEstimate:
    """The estimate. BadInputError where its fullest rank needs more than a GPU has, with what would fit."""
    found = estimate(run)
    if found.most.total + room_of(gpu_bytes) <= gpu_bytes:
        return found
    fit = nearest_fitting(run, gpu_bytes)
    raise BadInputError(
        "bad_request",
        f"memory of a rank at {_named(run.parallelism, run.world_size)}",
        found=_table(found.most),
        expected=f"at most {_gib(gpu_bytes - room_of(gpu_bytes))} of a GPU's {_gib(gpu_bytes)}",
        next_step=_advice(run, fit),
    )


def room_of(gpu_bytes: int) -> int:
    """What is left free."""
    return min(_ROOM, gpu_bytes // 10)


def nearest_fitting(run: TrainerRun, gpu_bytes: int) -> Fit | None:
    """The fewest GPUs, from as many as asked for on; then the fewest changes; then the smaller sizes."""
    counted = census(run.model)
    for doubling in range(_DOUBLINGS + 1):
        fits: list[tuple[tuple[int, ...], Fit]] = []
        for sizes in _candidates(run):
            world = run.world_size * 2**doubling
            if world % fewest_gpus(sizes):
                continue
            other = replace(run, parallelism=sizes, world_size=world)
            if not is_possible(other):
                continue
            found = estimate(other, counted)
            if found.most.total + room_of(gpu_bytes) <= gpu_bytes:
                fit = Fit(parallelism=sizes, world_size=world, estimate=found)
                fits.append((_distance(run.parallelism, sizes), fit))
        if fits:
            return min(fits, key=lambda one: one[0])[1]
    return None


def _candidates(run: TrainerRun) -> Iterator[Parallelism]:
    asked, values = run.parallelism, run.model.mcore
    experts = values.get("num_moe_experts")
    tps = sorted({asked.tp_size, *(2**power for power in range(4) if 2**power <= _MOST_TP)})
    pps = sorted({asked.pp_size, *(2**power for power in range(7) if 2**power <= values.positive("num_layers"))})
    eps = sorted({asked.ep_size, *(2**power for power in range(8) if isinstance(experts, int) and 2**power <= experts)})
    for tp, pp, ep in product(tps, pps, eps):
        update: dict[str, object] = {"tp_size": tp, "pp_size": pp, "ep_size": ep, "world_size": None}
        if pp != asked.pp_size:
            update |= {"vpp_size": None, "first_stage_layers": None, "last_stage_layers": None}
        if tp == 1:
            update["sequence_parallel"] = None
        if isinstance(experts, int) and ep > 1 and asked.etp_size is None:
            for etp in sorted({1, tp}):
                yield asked.model_copy(update={**update, "etp_size": etp})
        else:
            yield asked.model_copy(update=update)


def _distance(asked: Parallelism, found: Parallelism) -> tuple[int, ...]:
    names = ("tp_size", "pp_size", "ep_size")
    changed = sum(getattr(asked, name) != getattr(found, name) for name in names)
    return changed, found.tp_size * found.pp_size * found.ep_size, found.pp_size, found.etp_size or 0


def _advice(run: TrainerRun, fit: Fit | None) -> str:
    if fit is None:
        return "No parallelism up to 128 times as many GPUs fits: shorten the sequence, or recompute `full`."
    more = "; recompute `full` takes less too" if run.recompute != "full" else ""
    return f"{_named(fit.parallelism, fit.world_size)} fits, with {_gib(fit.estimate.most.total)}{more}."


def _named(sizes: Parallelism, world_size: int) -> str:
    """As the command line has it."""
    named = [("--tp", sizes.tp_size), ("--pp", sizes.pp_size), ("--vpp", sizes.vpp_size), ("--cp", sizes.cp_size)]
    named += [("--ep", sizes.ep_size), ("--etp", sizes.etp_size)]
    text = " ".join(f"{name} {size}" for name, size in named if size not in (None, 1) or name == "--tp")
    if sizes.etp_size == 1 and sizes.ep_size > 1 and sizes.tp_size > 1:
        text += " --etp 1"
    return f"{text} on {world_size} GPU{'s' if world_size > 1 else ''}"


def _table(most: StageMemory) -> str:
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    listed = ", ".join(f"{name} {_gib(getattr(most, name))}" for name in parts if getattr(most, name))
    return f"{_gib(most.total)} on a rank of stage {most.stage}: {listed}"


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
