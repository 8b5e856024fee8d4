"""The `export` job: Megatron-Core checkpoint -> HF folder; needs no original HF checkpoint."""

import time
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.cast_source import CastSource, main_dtype
from ..checkpoints.hf_folder import CONFIG
from ..checkpoints.identity import identities
from ..checkpoints.iterations import asked_tracker, iteration_folder
from ..checkpoints.safetensors_folder import INDEX, index_json, lay_out_shards
from ..checkpoints.source import Source
from ..engine.collection import uncollected
from ..engine.convert import items_of, refuse_nonzero
from ..engine.parts import shard_bytes_for
from ..engine.plain_weights import CONFIGURED
from ..jobs.locations import Locations, refuse_existing, refuse_inside
from ..jobs.spec import DType, ExportSpec, replaces
from ..mapping.bindings import Model, held_in_fp32
from ..mapping.blocks import Plan
from ..mapping.plan import plan_export
from ..mapping.quantization import FIELDS, without_quantization
from ..mapping.record import Record
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out, watched
from .described import Described, describe
from .hf_source import STORED, as_json
from .quantize import fp8_config, linear_weights, quantized_items
from .saved_weights import args_files, args_of, open_saved, weights_of
from .unverified import refuse_older_format


def run(spec: ExportSpec, context: JobContext) -> Prepared:
    """Plan, copy, finalize."""
    started = time.monotonic()
    return carry_out(prepare(spec, context.locations), spec, context, started, dict[str, bytes])


@uncollected()
@watched
def prepare(spec: ExportSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte: reads configs, the index and item headers."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    if not replaces(spec):
        refuse_existing(target)
    refuse_inside(source, target)
    if spec.verify:
        refuse_older_format(iteration_folder(source), f"verify {', '.join(spec.verify)}")
    hf_config = None if spec.hf_config is None else locations.resolve_source(spec.hf_config)
    opened = open_checkpoint(source, hf_config, spec.dtype, allow_pickle=locations.allow_pickle)
    described, weights, plan = opened.described, opened.weights, opened.plan
    items = items_of(plan, weights)
    config = plain_config(described.model, weights, spec.dtype)
    if spec.quantize is not None:
        quantized = linear_weights(described.model)
        left_plain = {item.name for item in items if len(item.shape) > 1} - quantized
        config = fp8_config(config or described.model.hf, left_plain)
        items = tuple(quantized_items(items, quantized))
    files = lay_out_shards(items, spec.max_shard_bytes or shard_bytes_for(sum(item.nbytes for item in items)))
    config_json = described.config_json if config is None else as_json(config)
    carried = {name: path for name, path in described.carried.items() if name != CONFIG or config_json is None}
    small = {INDEX: index_json(files), CONFIG: config_json}
    return Conversion(
        kind="export",
        source=source,
        target=target,
        model=described.model,
        weights=weights,
        plan=plan,
        items=items,
        files=files,
        small_files={name: data for name, data in small.items() if data is not None},
        carried=carried,
        sources=identities((*opened.files, *carried.values())),
        part_bytes=spec.part_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A Megatron checkpoint and the HF tensors that it comes to."""

    described: Described
    weights: Source
    plan: Plan
    described_by: tuple[Path, ...]
    """Files that say which tensors are meant, and what they mean."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that decides what is written."""
        blocks = (*self.plan.must_be_zero, *(block for task in self.plan.tasks for block in task.blocks))
        read = {block.source.name for block in blocks}
        return (*self.described_by, *self.weights.files_of(read))


def plain_config(model: Model, weights: Source, dtype: DType | None) -> Record | None:
    """The config of plain tensors, where the one that was found says otherwise; None where it stands."""
    if dtype is None and not any(model.hf.get(name) for name in FIELDS):
        return None
    return without_quantization(model.hf, CONFIGURED[STORED[dtype] if dtype else main_dtype(weights)])


def open_checkpoint(source: Path, hf_config: Path | None, dtype: DType | None = None, *, allow_pickle: bool) -> Opened:
    """Read configs and the index. BadInputError where anything is not understood, or has no place in HF's format."""
    folder = iteration_folder(source)
    saved = open_saved(folder, allow_pickle=allow_pickle)
    described = describe(hf_config, source, folder, args_of(saved))
    weights = weights_of(saved, described.model)
    if dtype is not None:
        weights = CastSource.of(weights, STORED[dtype], held_in_fp32(described.model))
    plan = plan_export(described.model, weights.tensors)
    refuse_nonzero(plan.must_be_zero, weights)
    described_by = (*described.described_by, *asked_tracker(source), *args_files(saved))
    return Opened(described=described, weights=weights, plan=plan, described_by=described_by)
