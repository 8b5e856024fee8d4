"""The `import` job: HF folder -> Megatron-Core `torch_dist` checkpoint, by blocks, without building a model."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ..checkpoints.common_state import CONTENT, PER_LAYER
from ..checkpoints.hf_folder import CONFIG, side_files
from ..checkpoints.identity import identities
from ..checkpoints.iterations import TRACKER, iteration_name, tracker_text
from ..checkpoints.torch_dist_layout import index_files, lay_out_items, lay_out_objects
from ..engine.collection import uncollected
from ..engine.convert import items_of, refuse_unequal
from ..engine.parts import file_bytes_for
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.spec import ImportSpec
from ..jobs.spec_fields import LayerKeys
from ..mapping.bindings import Model, bindings
from ..mapping.blocks import Plan
from ..mapping.extra_states import extra_states
from ..mapping.family import megatron_values
from ..mapping.plan import plan_import
from ..mapping.vocabulary import padded_size
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out, watched
from .hf_source import HFSource, open_hf
from .model_configs import MODEL_CONFIG

_HF = "hf"
_CHECKPOINT_VERSION = 3.0


def run(spec: ImportSpec, context: JobContext) -> Prepared:
    """Plan, copy, finalize. The config object is built beside the copy."""
    started = time.monotonic()
    conversion = prepare(spec, context.locations)
    refuse_unequal(conversion.plan.must_be_equal, conversion.weights)
    return carry_out(conversion, spec, context, started, model_config(conversion.model, spec.source, context))


def model_config(model: Model, source: str, context: JobContext) -> Callable[[], dict[str, bytes]]:
    """Begin to build the config object; what is answered waits for it."""
    context.model_configs.start(megatron_values(model.family, model.mcore, source))

    def late_files() -> dict[str, bytes]:
        return {MODEL_CONFIG: json.dumps(context.model_configs.result(), indent=1).encode() + b"\n"}

    return late_files


@uncollected()
@watched
def prepare(spec: ImportSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte: reads config.json and safetensors headers."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    if not source.is_dir():
        raise _no_folder(source)
    opened = open_hf(source, spec.dtype)
    padded = None if spec.vocab_padding is None else padded_size(opened.model.mcore, spec.vocab_padding)
    return into_megatron(
        opened,
        source,
        target,
        beside=side_files(source),
        described_by=(source / CONFIG,),
        padded=padded,
        layer_keys=spec.layer_keys,
        iteration=spec.iteration,
        part_bytes=spec.part_bytes,
    )


def into_megatron(
    opened: HFSource,
    source: Path,
    target: Path,
    *,
    beside: Mapping[str, Path],
    described_by: tuple[Path, ...],
    padded: int | None = None,
    layer_keys: LayerKeys = "stacked",
    iteration: int | None = None,
    part_bytes: int | None = None,
) -> Conversion:
    """The checkpoint that an import of these tensors writes.

    `beside` are the HF files that go along, `described_by` the files that say what the tensors mean; `padded` is the
    vocabulary's size in rows, None as it is.
    """
    model = replace(opened.model, layer_keys=layer_keys)
    plan = plan_import(model, opened.weights.tensors, padded)
    items = items_of(plan, opened.weights)
    folder = iteration_name(iteration)
    files = lay_out_items(items, folder, file_bytes_for(sum(item.nbytes for item in items)))
    objects = lay_out_objects(_objects(model, iteration), folder)
    index = index_files(items, files, objects)
    carried = {f"{_HF}/{name}": path for name, path in beside.items()}
    small = {f"{folder}/{name}": data for name, data in index.items()}
    if opened.config_json is not None:
        carried.pop(f"{_HF}/{CONFIG}", None)
        small[f"{_HF}/{CONFIG}"] = opened.config_json
    small[TRACKER] = tracker_text(iteration).encode()
    return Conversion(
        kind="import",
        source=source,
        target=target,
        model=model,
        weights=opened.weights,
        plan=plan,
        items=items,
        files=(*files, objects),
        small_files=small,
        carried=carried,
        sources=identities((*described_by, *carried.values(), *opened.weights.files_of(_sources_of(plan)))),
        part_bytes=part_bytes,
    )


def _sources_of(plan: Plan) -> set[str]:
    """Names of the tensors that are read."""
    compared = {name for pair in plan.must_be_equal for name in pair}
    return compared | {block.source.name for task in plan.tasks for block in task.blocks}


def _objects(model: Model, iteration: int | None) -> dict[str, object]:
    """What Megatron's loaders expect beside tensors."""
    states: dict[str, object] = {key: [None] for key in extra_states(model.family.model, bindings(model))}
    return {**states, **common_state(iteration, layer_keys=model.layer_keys)}


def common_state(
    iteration: int | None, more: Mapping[str, object] | None = None, *, layer_keys: LayerKeys = "stacked"
) -> dict[str, object]:
    """What all ranks share, and `more`. No `args`: partial ones fail a load, none are fine."""
    common = {
        "checkpoint_version": _CHECKPOINT_VERSION,
        "iteration": iteration or 0,
        "content_metadata": {**CONTENT, **(PER_LAYER if layer_keys == "per-layer" else {})},
        **(more or {}),
    }
    return {"common_state/shard_0_1": [common]}


def _no_folder(source: Path) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"source {source}",
        found="a file",
        expected="an HF checkpoint: config.json and safetensors",
        next_step="Check the path.",
    )
