"""The `merge` job: a base with adapters folded into its weights; what they do not touch is copied as bytes."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..adapters.merged_source import Folding, MergedSource
from ..checkpoints.hf_folder import CONFIG
from ..checkpoints.identity import identities
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.operations import Combination
from ..checkpoints.safetensors_folder import INDEX, index_json, lay_out_shards
from ..checkpoints.source import Source
from ..engine.collection import uncollected
from ..engine.convert import items_of, refuse_unequal
from ..engine.parts import shard_bytes_for
from ..engine.reading import same_bytes
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.spec import MergeSpec
from ..jobs.state import Progress
from ..mapping.bindings import Model, copies
from ..mapping.blocks import Address, Block, Plan, Task
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out, watched
from .hf_source import HFSource, is_hf
from .import_checkpoint import into_megatron, model_config
from .merge_adapters import match_adapter
from .merge_base import OpenedBase, open_base
from .merge_changes import Norms, measured_norms, planned_norms, refuse_no_change
from .merge_logits import refuse_unverifiable
from .other_base import refuse_other_base
from .unverified import refuse_older_format


def run(spec: MergeSpec, context: JobContext) -> Prepared:
    """Plan, copy and compute, finalize."""
    started = time.monotonic()
    conversion = prepare(spec, context.locations)
    refuse_unequal(conversion.plan.must_be_equal, conversion.weights)
    late = model_config(conversion.model, spec.source, context) if spec.to == "megatron" else dict[str, bytes]
    return carry_out(conversion, spec, context, started, late, partial(_late_norms, conversion, context))


@uncollected()
@watched
def prepare(spec: MergeSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte: reads configs, headers, and the adapters' factors."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    if "tensors" in spec.verify and not is_hf(source):
        refuse_older_format(iteration_folder(source), "verify tensors")
    opened = open_base(source, spec, locations)
    found = [match_adapter(locations.resolve_source(adapter.path), opened) for adapter in spec.adapters]
    for matched, _ in found:
        refuse_other_base(matched, source, opened.base, locations)
    refuse_unverifiable(spec, source, [matched for matched, _ in found])
    adapters = [(matched, use.weight) for (matched, _), use in zip(found, spec.adapters, strict=True)]
    left = tuple(dict.fromkeys(one for _, beside in found for one in beside))
    merged = MergedSource.of(opened.base, adapters, _folding(spec))
    merged = merged.with_followers(_copies(opened.model, opened.base.plain, merged))
    _refuse_two_replacements(merged)
    touched = planned_norms(merged)
    refuse_no_change(merged, touched)
    if merged.untied:
        opened = opened.untied()
    match spec.to:
        case "hf":
            conversion = _to_hf(spec, source, target, opened, merged, touched)
        case "megatron":
            conversion = _to_megatron(spec, source, target, opened, merged, touched)
    dropped = (*conversion.plan.dropped, *left)
    return replace(conversion, plan=replace(conversion.plan, dropped=dropped))


def _copies(model: Model, base: Source, merged: MergedSource) -> Mapping[str, str]:
    """Of tensors that adapters change: those of multi-token prediction, where they are what they are named for."""
    return {
        name: of
        for name, of in copies(model).items()
        if {name, of} <= base.tensors.keys()
        and name not in merged.touched
        and name not in merged.replaced
        and (of in merged.touched or of in merged.replaced)
        and base.tensors[name] == base.tensors[of]
        and (base.whole(name) == base.whole(of) or same_bytes(base.whole(name), base.whole(of)))
    }


def _late_norms(conversion: Conversion, context: JobContext) -> Mapping[str, float]:
    """Of what DoRA scaled, and of tensors that were replaced."""
    assert isinstance(conversion.weights, MergedSource)

    def report(done: int, total: int) -> None:
        context.report(Progress(phase="finalizing", done_bytes=done, total_bytes=total))

    return measured_norms(conversion.weights, context.copy_processes, report)


def _folding(spec: MergeSpec) -> Folding:
    stepwise = spec.rounding == "peft"
    if spec.combine == "sequential":
        return Folding(combination=None, stepwise=stepwise)
    method = spec.combine if len(spec.adapters) > 1 else "linear"  # as PEFT does
    how = Combination(
        method, spec.density or 1.0, spec.majority_sign_method, spec.svd_rank, spec.svd_clamp, (spec.seed,)
    )
    return Folding(combination=how, stepwise=stepwise)


def _to_hf(
    spec: MergeSpec,
    source: Path,
    target: Path,
    opened: OpenedBase,
    merged: MergedSource,
    touched: Norms,
) -> Conversion:
    plan = _as_it_is(merged)
    items = items_of(plan, merged)
    files = lay_out_shards(items, spec.max_shard_bytes or shard_bytes_for(sum(item.nbytes for item in items)))
    small = {INDEX: index_json(files), CONFIG: opened.config_json}
    carried = {name: path for name, path in opened.carried.items() if name not in small or small[name] is None}
    return Conversion(
        kind="merge",
        source=source,
        target=target,
        model=opened.model,
        weights=merged,
        plan=plan,
        items=items,
        files=files,
        small_files={name: data for name, data in small.items() if data is not None},
        carried=carried,
        sources=identities((*opened.described_by, *carried.values(), *merged.files_of(merged.tensors))),
        part_bytes=spec.part_bytes,
        touched=touched,
    )


def _as_it_is(weights: Source) -> Plan:
    """Every tensor to the same name."""
    tasks = (
        Task(
            target=Address(name),
            dtype=tensor.dtype,
            shape=tensor.shape,
            blocks=(Block(Address(name), 0, tensor.shape[0]),),
        )
        for name, tensor in weights.tensors.items()
    )
    return Plan(tasks=tuple(tasks))


def _to_megatron(
    spec: MergeSpec,
    source: Path,
    target: Path,
    opened: OpenedBase,
    merged: MergedSource,
    touched: Norms,
) -> Conversion:
    hf = HFSource(model=opened.model, weights=merged, config_json=opened.config_json)
    made = into_megatron(
        hf,
        source,
        target,
        beside=opened.carried,
        described_by=opened.described_by,
        layer_keys=spec.layer_keys,
        part_bytes=spec.part_bytes,
    )
    return replace(made, kind="merge", touched=touched)


def _refuse_two_replacements(merged: MergedSource) -> None:
    """Adapters of an embedding bring the base's own along, each the same."""
    for name, folder, own in merged.repeated:
        first, of_first = merged.replaced[name]
        if not same_bytes(first.weights.whole(of_first), folder.weights.whole(own)):
            raise BadInputError(
                "unsupported_config_value",
                f"base tensor {name!r}",
                found=f"two adapters that replace it by different tensors: {first.path} and {folder.path}",
                expected="one",
                next_step="Leave one of them out; tensors that are saved whole have no sum.",
            )
