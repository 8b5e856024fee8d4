"""A Megatron adapter checkpoint opened beside the model that it adapts."""

from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.linears import Linear
from ..adapters.mcore_config import ReadConfig, SavedConfig, read_mcore_config
from ..adapters.mcore_folder import McoreAdapter, find_factors
from ..checkpoints.common_state import common_file, common_files, saved_content, saved_peft
from ..checkpoints.iterations import asked_tracker, iteration_folder
from ..checkpoints.refusal import bad_checkpoint
from ..checkpoints.torch_dist import TorchDistFolder
from ..mapping.bindings import Model, bindings
from ..mapping.layer_sets import layer_keys_among


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedAdapter:
    """Its config, its tensors, and the layers that these belong to."""

    read: ReadConfig
    weights: TorchDistFolder
    adapter: McoreAdapter
    described_by: tuple[Path, ...]
    """Files that say what the tensors mean."""


def open_mcore_adapter(source: Path, model: Model, layers: tuple[Linear, ...]) -> OpenedAdapter:
    """Read config and index; `layers` may be adapted.

    BadInputError where a tensor belongs to nothing, or a layer lacks one.
    """
    folder = iteration_folder(source)
    weights = TorchDistFolder.open(folder)
    if saved_content(weights).get("singleton_local_shards"):
        found = "an adapter whose content_metadata says singleton_local_shards: True"
        raise bad_checkpoint(folder, found, "one saved without it, as Megatron-LM and Megatron-Bridge do")
    saved = saved_peft(weights)
    read = read_mcore_config(source, folder, None if saved is None else SavedConfig(saved, common_file(weights)))
    saved_as = replace(model, layer_keys=layer_keys_among(weights.tensors))
    names = frozenset(binding.target.name for binding in bindings(saved_as))
    adapter = find_factors(weights, read.config, layers, names)
    described_by = (read.path, *asked_tracker(source), *common_files(weights))
    return OpenedAdapter(read=read, weights=weights, adapter=adapter, described_by=described_by)
