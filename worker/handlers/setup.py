"""The `setup` job: a directory that a trainer starts from, its base included or referred to."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..adapters.fresh import FreshAdapter
from ..adapters.mcore_config import PEFT_CONFIG
from ..checkpoints.extents import Item, TargetFile
from ..checkpoints.iterations import RELEASE, TRACKER, tracker_text
from ..checkpoints.publish import MANIFEST
from ..checkpoints.torch_dist_layout import index_files, lay_out_items, lay_out_objects
from ..engine.collection import uncollected
from ..engine.convert import refuse_unequal
from ..engine.parts import file_bytes_for
from ..integration.peft import Peft, supported_targets
from ..jobs.errors import BadInputError, ConflictError
from ..jobs.locations import Locations
from ..jobs.setup_spec import PeftSettings, SetupSpec
from ..jobs.spec_fields import DType, LayerKeys
from ..mapping.blocks import Address, Plan, Task
from ..mapping.family import megatron_values
from ..mapping.run_config import RUN_CONFIG
from ..setups.ddp_values import ddp_json
from ..setups.layout import with_its_chunks
from ..setups.memory_estimate import MemoryEstimate
from ..setups.parallel_checks import refuse_impossible
from ..setups.profile import Profile
from ..setups.readme import readme
from ..setups.registry import profile_of
from ..setups.run_config import run_config
from ..setups.run_values import run_values
from ..setups.stages import fewest_gpus
from ..setups.suggestion import fits, refuse_too_large
from ..setups.trainer_run import TrainerRun
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out, watching
from .hf_source import STORED
from .import_checkpoint import common_state
from .linking import listed_in
from .model_configs import MODEL_CONFIG
from .setup_base import BASE, HF, SetupBase, open_setup_base
from .setup_checks import refuse_unverifiable

DDP_CONFIG, README = "ddp_config.json", "README.md"
_ADAPTER = "adapter"
_LONGEST = 4096
"""Tokens of a sample, unless asked for more."""
_NAMES: dict[str, DType] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def run(spec: SetupSpec, context: JobContext) -> Prepared:
    """Plan, write or link the base, write the configs, finalize. Upstream's config object is built beside the copy."""
    started = time.monotonic()
    planned = _watched(spec, context.locations)
    conversion, trainer_run, base = planned.conversion, planned.run, planned.base
    if base.conversion.files:
        refuse_unequal(base.conversion.plan.must_be_equal, conversion.weights)
    context.model_configs.start(megatron_values(base.model.family, run_values(trainer_run), spec.source))

    def late_files() -> dict[str, bytes]:
        config = context.model_configs.result()
        return {MODEL_CONFIG: json.dumps(config, indent=1).encode() + b"\n"}

    return carry_out(conversion, spec, context, started, late_files)


@uncollected()
def prepare(spec: SetupSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte; the run's parallelism and memory are judged."""
    return _watched(spec, locations).conversion


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    conversion: Conversion
    run: TrainerRun
    base: SetupBase


def _watched(spec: SetupSpec, locations: Locations) -> _Planned:
    watch, watched_locations = watching(spec, locations)
    planned = _planned(spec, watched_locations)
    return replace(planned, conversion=replace(planned.conversion, seen=watch.seen))


def _planned(spec: SetupSpec, locations: Locations) -> _Planned:
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    if spec.on_exists == "reuse":
        _refuse_foreign(target)
    if not source.is_dir():
        raise _no_source(source)
    peft = None if spec.peft is None else _checked(spec.peft)
    base = open_setup_base(spec, source, target, locations)
    refuse_unverifiable(spec, base.origin)
    trainer_run = _trainer_run(spec, base, target)
    refuse_impossible(trainer_run)
    profile = profile_of(spec.profile)
    files = profile.files(trainer_run)  # what the trainer lacks no other size mends
    memory = refuse_too_large(trainer_run, spec.gpu_bytes)
    adapter = _fresh_adapter(peft, spec, base, trainer_run)
    own = base.conversion
    conversion = replace(
        own,
        kind="setup",
        base=base.origin,
        plan=Plan(tasks=(*base.tasks, *adapter.tasks), dropped=own.plan.dropped, filled=own.plan.filled),
        items=(*base.items, *adapter.items),
        files=(*own.files, *adapter.files),
        small_files={
            **own.small_files,
            **adapter.small_files,
            DDP_CONFIG: ddp_json(spec.ddp),
            # Beside the weights alone: Bridge takes any folder that has one for an iteration's.
            (f"{RELEASE}/{RUN_CONFIG}" if base.is_here else RUN_CONFIG): run_config(trainer_run),
            **({} if peft is None else {PEFT_CONFIG: _peft_json(spec, peft)}),
            **files,
            README: readme(profile, trainer_run),
        },
        facts={
            BASE: {"way": base.way, "fingerprint": base.fingerprint},
            "setup": _told(spec, profile, trainer_run, memory),
        },
    )
    return _Planned(conversion=conversion, run=trainer_run, base=base)


def _refuse_foreign(target: Path) -> None:
    """`reuse` never takes away what a trainer has put beside what was set up."""
    if not target.exists():
        return
    listed = listed_in(target)
    if listed is None or listed.document.get("spec", {}).get("kind") != "setup":
        raise _not_ours(target, "a folder that no setup wrote")
    known = {*listed.files, MANIFEST}
    there = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    if foreign := sorted(there - known):
        raise _not_ours(target, f"{foreign[0]!r}, which the setup did not write")


def _trainer_run(spec: SetupSpec, base: SetupBase, target: Path) -> TrainerRun:
    values = base.model.mcore
    longest = values.integer("seq_length", _LONGEST)
    sizes = with_its_chunks(spec.parallelism)
    return TrainerRun(
        model=base.model,
        dtype=_NAMES[values.text("params_dtype", "float32")],
        parallelism=sizes,
        world_size=sizes.world_size or fewest_gpus(sizes),
        target=target,
        base=base.root,
        iteration=base.iteration,
        tracked=base.tracked,
        hf=target / HF,
        hf_weights=base.hf_weights,
        peft=spec.peft,
        adapter=target / _ADAPTER if spec.peft is not None and spec.peft.init_adapter else None,
        ddp=spec.ddp,
        sequence_length=spec.sequence_length or min(longest, _LONGEST),
        micro_batch_size=spec.micro_batch_size,
        recompute=spec.recompute,
        seed=spec.seed,
    )


def _peft_json(spec: SetupSpec, peft: Peft) -> bytes:
    """As `create_peft` reads it, the targets that are meant spelled out."""
    assert spec.peft is not None
    values = {**spec.peft.model_dump(exclude={"init_adapter"}), "target_modules": peft.targets}
    return json.dumps(values, indent=2).encode() + b"\n"


def _told(spec: SetupSpec, profile: Profile, trainer_run: TrainerRun, memory: MemoryEstimate) -> Mapping[str, object]:
    """For plan and manifest: what was decided, and what a rank is estimated to hold."""
    sizes = trainer_run.parallelism.model_dump()
    decided = {
        "etp_size": trainer_run.etp_size,
        "sequence_parallel": trainer_run.sequence_parallel,
        "world_size": trainer_run.world_size,
        "dp_size": trainer_run.dp_size,
    }
    return {
        "verdict": fits(trainer_run, memory, spec.gpu_bytes),
        "profile": profile.trainer,
        "parallelism": {**sizes, **decided},
        "sequence_length": trainer_run.sequence_length,
        "memory": asdict(memory),
        "gpu_bytes": spec.gpu_bytes,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    tasks: tuple[Task, ...] = ()
    items: tuple[Item, ...] = ()
    files: tuple[TargetFile, ...] = ()
    small_files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


def _fresh_adapter(peft: Peft | None, spec: SetupSpec, base: SetupBase, trainer_run: TrainerRun) -> _Adapter:
    if peft is None or spec.peft is None:
        return _Adapter()
    fresh = FreshAdapter(
        dim=peft.dim,
        seed=peft.seed,
        dtype=STORED[trainer_run.dtype],
        parts=peft.parts_of,
        base=base.rows if peft.type == "dora" else None,
    )
    items = fresh.items(base.model)
    if not items:
        raise BadInputError(
            "bad_request",
            "spec field peft.target_modules",
            found=", ".join(peft.targets),
            expected=f"names of layers that a {base.model.family.name} model has",
            next_step="Name others, such as linear_qkv, linear_proj, linear_fc1, linear_fc2.",
        )
    if not spec.peft.init_adapter:
        return _Adapter()
    folder = f"{_ADAPTER}/{RELEASE}"
    files = lay_out_items(items, folder, file_bytes_for(sum(item.nbytes for item in items)))
    objects = lay_out_objects(_common(peft, base.model.layer_keys), folder)
    return _Adapter(
        tasks=tuple(map(_task, items)),
        items=items,
        files=(*files, objects),
        small_files={
            **{f"{folder}/{name}": data for name, data in index_files(items, files, objects).items()},
            f"{_ADAPTER}/{TRACKER}": tracker_text(None).encode(),
            f"{_ADAPTER}/{PEFT_CONFIG}": _peft_json(spec, peft),
            f"{folder}/{RUN_CONFIG}": run_config(trainer_run),
        },
    )


def _task(item: Item) -> Task:
    """Nothing is read for it."""
    return Task(target=Address(item.name, item.index), dtype=item.dtype, shape=item.shape, stack=item.stack, blocks=())


def _common(peft: Peft, layer_keys: LayerKeys) -> dict[str, object]:
    """What `load_peft_adapter_checkpoint` compares: a wrong alpha would scale silently."""
    described = {"type": peft.type, "dim": peft.dim, "alpha": peft.alpha, "target_modules": list(peft.targets)}
    return common_state(None, {"peft": described}, layer_keys=layer_keys)


def _checked(peft: PeftSettings) -> Peft:
    """BadInputError for a target that Megatron's layers have no such adapter for."""
    supported = supported_targets(peft.type)
    for target in peft.target_modules:
        if target.rpartition(".")[2] not in supported:
            raise BadInputError(
                "bad_request",
                "spec field peft.target_modules",
                found=repr(target),
                expected=f"Megatron's names of layers, for {peft.type} one of {', '.join(supported)}",
                next_step="Name those, or leave the field out for the type's usual ones.",
            )
    return Peft(**peft.model_dump(exclude={"init_adapter"}))


def _no_source(source: Path) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"source {source}",
        found="a file",
        expected="an HF folder, a Megatron checkpoint, or with `init: random` a folder with config.json",
        next_step="Check the path.",
    )


def _not_ours(target: Path, found: str) -> ConflictError:
    return ConflictError(
        "target_exists",
        f"target {target}",
        found=found,
        expected="a directory as an earlier setup left it",
        next_step="Move away what is to be kept, or choose another target.",
    )
