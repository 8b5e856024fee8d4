"""The direct way: HF config -> the family's table -> upstream's config object, and back. Configuration only."""

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .family import Family, megatron_values
from .hf_config import HFConfig, read_hf_config
from .model_config import build, to_json_dict
from .record import Record
from .registry import FAMILIES, family_of
from .written_config import read_written

if TYPE_CHECKING:
    from megatron.training.models.gpt import GPTModelConfig

CONFIG_MAPPING: Final = MappingProxyType(
    {model_type: family.fields for family in FAMILIES for model_type in family.model_types}
)
"""HF `model_type` -> the codecs of its config: each reads HF fields and writes Megatron's, and the other way."""


def to_megatron_model_config(hf_config: HFConfig) -> "GPTModelConfig":
    """Upstream's `GPTModelConfig` or `HybridModelConfig`, or our variant of the former, for an HF config.

    `hf_config` is the content of a config.json, a path to it or its folder, or a transformers config. No weights are
    read, nothing is distributed, built or finalized; parallelism is the caller's to set. `extra_checkpoint_metadata`
    records the source and its revision. BadInputError on any field or value that Megatron-Core cannot express.
    """
    config, source = read_hf_config(hf_config)
    return hf_config_to_model_config(config, family_of(config), source)


def hf_config_to_model_config(config: Record, family: Family, source: str) -> "GPTModelConfig":
    """`config` through the table of `family`; `source` is recorded."""
    return build(megatron_values(family, family.to_mcore(config), source))


def to_hf_config(model_config: "GPTModelConfig") -> dict[str, object]:
    """The HF config.json of a config that `to_megatron_model_config` made or an import wrote.

    Equal to the source's in every field that changes weights or forward pass. BadInputError where a value has no
    form in HF, or where the config does not say its family.
    """
    family, values = read_written(to_json_dict(model_config), "Megatron config")
    return dict(family.to_hf(values).values)
