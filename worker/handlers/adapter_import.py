"""The `adapter` job's import: PEFT folder -> Megatron adapter checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ..adapters.linears import base_tensors, linears
from ..adapters.matching import match
from ..adapters.mcore_config import PEFT_CONFIG
from ..adapters.peft_config import ADAPTER_CONFIG
from ..adapters.peft_folder import PeftFolder
from ..adapters.to_mcore import mcore_tensors
from ..checkpoints.hf_folder import CONFIG, read_json_object
from ..checkpoints.identity import identities
from ..checkpoints.iterations import TRACKER, iteration_name, tracker_text
from ..checkpoints.torch_dist_layout import index_files, lay_out_items, lay_out_objects
from ..engine.parts import file_bytes_for
from ..engine.reading import same_bytes
from ..jobs.locations import Locations
from ..jobs.spec import AdapterImportSpec
from .adapter_base import HF, base_model
from .conversion import Conversion
from .described import Described
from .import_checkpoint import common_state


def prepare(spec: AdapterImportSpec, locations: Locations) -> Conversion:
    """Everything: what is left to do is to copy rows."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    described = base_model(locations.resolve_source(spec.base), locations)
    model = described.model
    matched = match(PeftFolder.open(source), base_tensors(model))
    layers = linears(model)
    made = mcore_tensors(matched, layers, spec.form, same_bytes, _dropout(source))
    folder = iteration_name(spec.iteration)
    files = lay_out_items(made.items, folder, file_bytes_for(sum(item.nbytes for item in made.items)))
    objects = lay_out_objects(common_state(spec.iteration), folder)
    index = index_files(made.items, files, objects)
    weights = matched.folder.weights
    return Conversion(
        kind="adapter",
        source=source,
        target=target,
        model=model,
        weights=weights,
        plan=made.plan,
        items=made.items,
        files=(*files, objects),
        small_files={
            **{f"{folder}/{name}": data for name, data in index.items()},
            **_base_config(described),
            PEFT_CONFIG: made.config.as_json(),
            TRACKER: tracker_text(spec.iteration).encode(),
        },
        carried=_carried(source, described),
        sources=identities((source / ADAPTER_CONFIG, *described.described_by, *weights.files_of(weights.tensors))),
    )


def _dropout(source: Path) -> float:
    """What training goes on with."""
    return cast(float, read_json_object(source / ADAPTER_CONFIG, "a PEFT adapter's config").get("lora_dropout") or 0.0)


def _carried(source: Path, described: Described) -> Mapping[str, Path]:
    """The configs of both sides, so that an export needs no other folder."""
    own = {f"{HF}/{ADAPTER_CONFIG}": source / ADAPTER_CONFIG}
    given = described.carried.get(CONFIG)
    return own if given is None else own | {f"{HF}/{CONFIG}": given}


def _base_config(described: Described) -> Mapping[str, bytes]:
    return {} if described.config_json is None else {f"{HF}/{CONFIG}": described.config_json}
