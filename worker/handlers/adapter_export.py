"""The `adapter` job's export: Megatron adapter -> PEFT folder."""

from collections.abc import Collection

from ..adapters.linears import base_tensors, linears
from ..adapters.peft_config import ADAPTER_CONFIG
from ..adapters.peft_folder import WEIGHTS
from ..adapters.peft_written import WrittenConfig
from ..adapters.to_peft import peft_tensors
from ..checkpoints.identity import identities
from ..checkpoints.iterations import iteration_folder
from ..checkpoints.safetensors_folder import lay_out_file
from ..engine.convert import items_of
from ..jobs.locations import Locations
from ..jobs.spec import AdapterExportSpec
from ..mapping.bindings import Model
from .adapter_base import base_model, base_name, files_left_beside
from .conversion import Conversion
from .described import describe
from .mcore_adapter import open_mcore_adapter


def prepare(spec: AdapterExportSpec, locations: Locations) -> Conversion:
    """Everything: what is left to do is to copy rows."""
    source, target = locations.resolve_source(spec.source), locations.resolve_target(spec.target)
    base = None if spec.base is None else locations.resolve_source(spec.base)
    own = describe(None, source, iteration_folder(source), {}) if base is None else base_model(base, locations)
    opened = open_mcore_adapter(source, own.model, linears(own.model))
    model, read, weights = own.model, opened.read, opened.weights
    tensors = peft_tensors(opened.adapter.as_hf_loads_it(), weights)
    items = items_of(tensors.plan, weights)
    written = WrittenConfig(
        base=base_name(spec.base_name, source, base),
        alpha=read.config.alpha,
        dropout=read.config.dropout,
        dora=read.config.type == "dora",
        ranks=tensors.ranks,
        others=other_modules(model, tensors.ranks),
    )
    used = {block.source.name for task in tensors.plan.tasks for block in task.blocks}
    return Conversion(
        kind="adapter",
        source=source,
        target=target,
        model=model,
        weights=weights,
        plan=tensors.plan,
        items=items,
        files=(lay_out_file(WEIGHTS, items),),
        small_files={ADAPTER_CONFIG: written.as_json()},
        carried={},
        sources=identities(
            (*opened.described_by, *own.described_by, *files_left_beside(source), *weights.files_of(used))
        ),
    )


def other_modules(model: Model, adapted: Collection[str]) -> frozenset[str]:
    """Modules that HF loads with a weight, and that are not adapted."""
    known = base_tensors(model)
    modules = (name.removesuffix(".weight") for name in known.tensors if known.is_loaded(name))
    return frozenset(module for module in modules if module not in adapted)
