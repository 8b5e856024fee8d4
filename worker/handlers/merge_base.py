"""The base of a merge: HF folder or Megatron checkpoint, opened as HF tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.base_tensors import BaseTensors
from ..adapters.merged_source import Base
from ..checkpoints.hf_folder import CONFIG, side_files
from ..checkpoints.source import Source
from ..engine.convert import items_of
from ..engine.item_source import ItemSource
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.spec import MergeSpec
from ..mapping.bindings import Model
from ..mapping.quantization import quantized
from ..mapping.record import Record
from .config import model_of, read_record
from .export_checkpoint import plain_config
from .hf_source import as_json, is_hf, open_hf, open_precise, refuse_hf_config
from .megatron_source import Opened, open_checkpoint

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight")
_TURNED_EXPERTS = ("gpt_oss",)
"""Families whose experts are stored [experts, in, out]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBase:
    """A base, and the HF files that go with it."""

    model: Model
    """As its config tells it, whatever the base's own keys are."""
    base: Base
    config_json: bytes | None
    """None where config.json is among the carried files and says what is so."""
    carried: Mapping[str, Path]
    described_by: tuple[Path, ...]
    """Files that say what the tensors mean."""

    def untied(self) -> "OpenedBase":
        """The same with an output layer of its own."""
        config = Record({**self.model.hf.values, "tie_word_embeddings": False}, self.model.hf.origin)
        return OpenedBase(
            model=model_of(config),
            base=self.base,
            config_json=as_json(config),
            carried=self.carried,
            described_by=self.described_by,
        )


def open_base(source: Path, spec: MergeSpec, locations: Locations) -> OpenedBase:
    """Read configs and headers. BadInputError where the base is quantized and may not be written plain."""
    refuse_hf_config(spec.hf_config, source)
    if is_hf(source):
        return _hf(source, spec)
    hf_config = None if spec.hf_config is None else locations.resolve_source(spec.hf_config)
    return _megatron(source, hf_config, spec, allow_pickle=locations.allow_pickle)


def _hf(source: Path, spec: MergeSpec) -> OpenedBase:
    if quantized(read_record(source)) is not None and not spec.dequantize:
        raise _quantized(source)
    opened = open_hf(source, spec.dtype)
    return OpenedBase(
        model=opened.model,
        base=_base(opened.model, open_precise(source), opened.weights),
        config_json=opened.config_json,
        carried=side_files(source),
        described_by=(source / CONFIG,),
    )


def _megatron(source: Path, hf_config: Path | None, spec: MergeSpec, *, allow_pickle: bool) -> OpenedBase:
    precise = open_checkpoint(source, hf_config, allow_pickle=allow_pickle)
    plain = open_checkpoint(source, hf_config, spec.dtype, allow_pickle=allow_pickle) if spec.dtype else precise
    described = precise.described
    config = plain_config(described.model, plain.weights, spec.dtype)
    return OpenedBase(
        model=replace(described.model, layer_keys="stacked"),
        base=_base(described.model, _as_hf(precise), _as_hf(plain)),
        config_json=described.config_json if config is None else as_json(config),
        carried=described.carried,
        described_by=precise.files,
    )


def _as_hf(opened: Opened) -> Source:
    return ItemSource.of(items_of(opened.plan, opened.weights))


def _base(model: Model, precise: Source, plain: Source) -> Base:
    known = BaseTensors(
        tensors=plain.tensors,
        tied=_tied(model, plain),
        layers=model.mcore.integer("num_layers"),
        turned_experts=model.hf.get("model_type") in _TURNED_EXPERTS,
    )
    return Base(precise=precise, plain=plain, known=known)


def _tied(model: Model, weights: Source) -> tuple[str, str] | None:
    embedding = next((name for name in weights.tensors if name.endswith(_EMBEDDINGS)), None)
    if embedding is None or not model.mcore.get("share_embeddings_and_output_weights"):
        return None
    return _HEAD, embedding


def _quantized(source: Path) -> BadInputError:
    return BadInputError(
        "unsupported_config_value",
        f"base {source}",
        found="a quantized checkpoint",
        expected="plain tensors: merged weights are not quantized again",
        next_step="Allow it to be written plain: `ferry merge ... --dequantize`.",
    )
