"""The `export` job: Megatron-Core `torch_dist` checkpoint -> HF folder; needs no original HF checkpoint."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.cast_source import CastSource, main_dtype
from ..checkpoints.hf_folder import CONFIG, read_json_object, side_files
from ..checkpoints.identity import identities
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.safetensors_folder import INDEX, index_json, lay_out_shards
from ..checkpoints.source import Source
from ..checkpoints.torch_dist import TorchDistFolder
from ..engine.collection import uncollected
from ..engine.convert import items_of, refuse_nonzero
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations, refuse_existing, refuse_inside
from ..jobs.spec import DType, ExportSpec, replaces
from ..mapping.bindings import Model, held_in_fp32
from ..mapping.blocks import Plan
from ..mapping.plan import plan_export
from ..mapping.quantization import FIELDS, without_quantization
from ..mapping.record import Record
from ..mapping.written_config import read_written
from .config import read_model
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out
from .hf_source import CONFIGURED, STORED, as_json
from .import_checkpoint import MODEL_CONFIG
from .quantize import fp8_config, linear_weights, quantized_items


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """The model of a checkpoint, and the HF files that describe it."""

    model: Model
    carried: dict[str, Path]
    config_json: bytes | None
    """None where config.json is among the carried files."""


def run(spec: ExportSpec, context: JobContext) -> Prepared:
    """Plan, copy, finalize."""
    started = time.monotonic()
    return carry_out(prepare(spec, context.locations), spec, context, started, dict[str, bytes])


@uncollected()
def prepare(spec: ExportSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte: reads configs, the index and item headers."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    if not replaces(spec):
        refuse_existing(target)
    refuse_inside(source, target)
    hf_config = None if spec.hf_config is None else locations.resolve_source(spec.hf_config)
    opened = open_checkpoint(source, hf_config, spec.dtype)
    described, weights, plan = opened.described, opened.weights, opened.plan
    items = items_of(plan, weights)
    config = _plain_config(described.model, weights, spec.dtype)
    if spec.quantize is not None:
        quantized = linear_weights(described.model)
        left_plain = {item.name for item in items if len(item.shape) > 1} - quantized
        config = fp8_config(config or described.model.hf, left_plain)
        items = tuple(quantized_items(items, quantized))
    files = lay_out_shards(items, spec.max_shard_bytes)
    read = {block.source.name for task in plan.tasks for block in task.blocks}
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
        sources=identities(weights.files_of(read)),
        part_bytes=spec.part_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A Megatron checkpoint and the HF tensors that it comes to."""

    described: _Described
    weights: Source
    plan: Plan


def _plain_config(model: Model, weights: Source, dtype: DType | None) -> Record | None:
    """The config of plain tensors, where the one that was found says otherwise; None where it stands."""
    if dtype is None and not any(model.hf.get(name) for name in FIELDS):
        return None
    return without_quantization(model.hf, CONFIGURED[STORED[dtype] if dtype else main_dtype(weights)])


def open_checkpoint(source: Path, hf_config: Path | None, dtype: DType | None = None) -> Opened:
    """Read configs and the index. BadInputError where anything is not understood, or has no place in HF's format."""
    folder = iteration_folder(source)
    described = _describe(hf_config, (source, folder.parent))
    weights: Source = TorchDistFolder.open(folder)
    if dtype is not None:
        weights = CastSource.of(weights, STORED[dtype], held_in_fp32(described.model))
    plan = plan_export(described.model, weights.tensors)
    refuse_nonzero(plan.must_be_zero, weights)
    return Opened(described=described, weights=weights, plan=plan)


def _describe(hf_config: Path | None, places: tuple[Path, ...]) -> _Described:
    """What was given; else `hf/` beside the checkpoint; else what its model_config.json says."""
    candidates = (hf_config,) if hf_config else tuple(place / "hf" for place in places)
    for folder in candidates:
        if hf_config or (folder / CONFIG).exists():
            return _given(folder)
    for place in places:
        if (place / MODEL_CONFIG).exists():
            return _derived(place / MODEL_CONFIG)
    raise BadInputError(
        "missing_file",
        f"config of checkpoint {places[0]}",
        found=f"neither hf/{CONFIG} nor {MODEL_CONFIG} beside it",
        expected="one of them, or a given HF config",
        next_step="Name a folder with config.json and tokenizer: `ferry export ... --hf-config DIR`.",
    )


def _given(folder: Path) -> _Described:
    model = read_model(folder)
    if folder.is_file():
        return _Described(model=model, carried={CONFIG: folder}, config_json=None)
    return _Described(model=model, carried=side_files(folder), config_json=None)


def _derived(path: Path) -> _Described:
    family, mcore = read_written(read_json_object(path, "a ModelConfig as an import leaves it"), str(path))
    hf = family.to_hf(mcore)
    text = json.dumps(hf.values, indent=2).encode() + b"\n"
    return _Described(model=Model(family=family, hf=hf, mcore=mcore), carried={}, config_json=text)
