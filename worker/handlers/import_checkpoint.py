"""The `import` job: HF folder -> Megatron-Core `torch_dist` checkpoint, by blocks, without building a model."""

import json
import time
from pathlib import Path

from ..checkpoints.hf_folder import CONFIG, side_files
from ..checkpoints.identity import identities
from ..checkpoints.iterations import TRACKER, iteration_name, tracker_text
from ..checkpoints.torch_dist_layout import index_files, lay_out_items, lay_out_objects
from ..engine.collection import uncollected
from ..engine.convert import items_of, refuse_unequal
from ..engine.parts import file_bytes_for
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations, refuse_existing, refuse_inside
from ..jobs.spec import ImportSpec, replaces
from ..mapping.bindings import Model, bindings
from ..mapping.extra_states import extra_states
from ..mapping.family import megatron_values
from ..mapping.plan import plan_import
from ..mapping.vocabulary import padded_size
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out
from .hf_source import open_hf

MODEL_CONFIG = "model_config.json"
_HF = "hf"
_CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
_CHECKPOINT_VERSION = 3.0


def run(spec: ImportSpec, context: JobContext) -> Prepared:
    """Plan, copy, finalize. The config object is built beside the copy."""
    started = time.monotonic()
    conversion = prepare(spec, context.locations)
    model = conversion.model
    refuse_unequal(conversion.plan.must_be_equal, conversion.weights)
    context.model_configs.start(megatron_values(model.family, model.mcore, spec.source))

    def late_files() -> dict[str, bytes]:
        return {MODEL_CONFIG: json.dumps(context.model_configs.result(), indent=1).encode() + b"\n"}

    return carry_out(conversion, spec, context, started, late_files)


@uncollected()
def prepare(spec: ImportSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte: reads config.json and safetensors headers."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    if not replaces(spec):
        refuse_existing(target)
    refuse_inside(source, target)
    if not source.is_dir():
        raise _no_folder(source)
    opened = open_hf(source, spec.dtype)
    model, weights = opened.model, opened.weights
    padded = None if spec.vocab_padding is None else padded_size(model.mcore, spec.vocab_padding)
    plan = plan_import(model, weights.tensors, padded)
    items = items_of(plan, weights)
    folder = iteration_name(spec.iteration)
    files = lay_out_items(items, folder, file_bytes_for(sum(item.nbytes for item in items)))
    objects = lay_out_objects(_objects(model, spec.iteration), folder)
    index = index_files(items, files, objects)
    read = {block.source.name for task in plan.tasks for block in task.blocks}
    carried = {f"{_HF}/{name}": path for name, path in side_files(source).items()}
    small = {f"{folder}/{name}": data for name, data in index.items()}
    if opened.config_json is not None:
        del carried[f"{_HF}/{CONFIG}"]
        small[f"{_HF}/{CONFIG}"] = opened.config_json
    return Conversion(
        kind="import",
        source=source,
        target=target,
        model=model,
        weights=weights,
        plan=plan,
        items=items,
        files=(*files, objects),
        small_files={**small, TRACKER: tracker_text(spec.iteration).encode()},
        carried=carried,
        sources=identities((source / CONFIG, *weights.files_of(read))),
        part_bytes=spec.part_bytes,
    )


def _objects(model: Model, iteration: int | None) -> dict[str, object]:
    """What Megatron's loaders expect beside tensors. No `args`: partial ones fail a load, none are fine."""
    common = {
        "checkpoint_version": _CHECKPOINT_VERSION,
        "iteration": iteration or 0,
        "content_metadata": _CONTENT_METADATA,
    }
    states: dict[str, object] = {key: [None] for key in extra_states(model.family.model, bindings(model))}
    return {**states, "common_state/shard_0_1": [common]}


def _no_folder(source: Path) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"source {source}",
        found="no such folder",
        expected="an HF checkpoint: config.json and safetensors",
        next_step="Check the path.",
    )
