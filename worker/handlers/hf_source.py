"""An HF folder opened for reading: its model, and its weights as plain tensors in the dtype that is wanted."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.cast_source import CastSource
from ..checkpoints.hf_folder import CONFIG
from ..checkpoints.safetensors_folder import SafetensorsFolder
from ..checkpoints.source import Source
from ..engine.plain_weights import CONFIGURED, dequantized, open_plain, plain_dtype
from ..jobs.errors import BadInputError
from ..jobs.spec import DType
from ..mapping.bindings import Model, held_in_fp32
from ..mapping.quantization import quantized, without_quantization
from ..mapping.record import Record
from .config import model_of, read_record

STORED: dict[DType, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""safetensors' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HFSource:
    """What an HF folder holds."""

    model: Model
    weights: Source
    config_json: bytes | None
    """The config of what is written, where it is not the folder's own: other dtype, no quantization."""


def is_hf(place: Path) -> bool:
    """Whether this is an HF folder with weights."""
    return (place / CONFIG).exists() and any(place.glob("*.safetensors"))


def refuse_hf_config(given: object, *places: Path) -> None:
    """BadInputError for a config beside HF folders alone, each of which has its own: it would be ignored."""
    if given is not None and all(map(is_hf, places)):
        raise BadInputError(
            "bad_request",
            f"spec field hf_config {str(given)!r}",
            found=f"it beside {' and '.join(map(str, places))}, in HF's format, with a {CONFIG} of its own",
            expected="a Megatron checkpoint for it to describe",
            next_step=f"Leave `hf_config` out; what is to be changed, change in that {CONFIG}.",
        )


def open_hf(folder: Path, dtype: DType | None = None) -> HFSource:
    """Read config and headers. BadInputError on any field, or way of storing tensors, that is not understood."""
    config, stored = read_record(folder), SafetensorsFolder.open(folder)
    if quantized(config) is None and dtype is None:
        return HFSource(model=model_of(config), weights=stored, config_json=None)
    target = STORED[dtype] if dtype else plain_dtype(config, stored)
    plain = without_quantization(config, CONFIGURED[target])
    model = model_of(plain)
    weights = dequantized(config, stored, target)
    if dtype is not None:
        weights = CastSource.of(weights, target, held_in_fp32(model))
    return HFSource(model=model, weights=weights, config_json=as_json(plain))


def open_tensors(folder: Path) -> Source:
    """The weights alone, whatever model they make; dequantized where the config says that they are quantized."""
    return open_plain(read_record(folder), folder)


def open_precise(folder: Path) -> Source:
    """The weights as exact as they are known: quantized ones in fp32, which holds their products."""
    return dequantized(read_record(folder), SafetensorsFolder.open(folder), "F32")


def as_json(config: Record) -> bytes:
    """config.json of these values."""
    return json.dumps(dict(config.values), indent=2).encode() + b"\n"
