"""The `export` job: Megatron-Core checkpoint -> HF folder; needs no original HF checkpoint."""

import time

from ..checkpoints.cast_source import main_dtype
from ..checkpoints.hf_folder import CONFIG
from ..checkpoints.identity import identities
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.safetensors_folder import INDEX, index_json, lay_out_shards
from ..checkpoints.source import Source
from ..engine.collection import uncollected
from ..engine.convert import items_of
from ..engine.parts import shard_bytes_for
from ..engine.plain_weights import CONFIGURED
from ..jobs.locations import Locations
from ..jobs.spec import DType, ExportSpec
from ..mapping.bindings import Model
from ..mapping.quantization import FIELDS, without_quantization
from ..mapping.record import Record
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out, watched
from .hf_source import STORED, as_json
from .megatron_source import open_checkpoint
from .quantize import fp8_config, linear_weights, quantized_items
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


def plain_config(model: Model, weights: Source, dtype: DType | None) -> Record | None:
    """The config of plain tensors, where the one that was found says otherwise; None where it stands."""
    if dtype is None and not any(model.hf.get(name) for name in FIELDS):
        return None
    return without_quantization(model.hf, CONFIGURED[STORED[dtype] if dtype else main_dtype(weights)])
