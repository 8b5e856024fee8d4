"""An HF folder opened for reading: its model, and its weights as plain tensors in the dtype that is wanted."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.cast_source import CastSource, main_dtype
from ..checkpoints.quantized_folder import Fp8Blocks, Int4Packed, Mxfp4Experts, QuantizedFolder, Scheme
from ..checkpoints.safetensors_folder import SafetensorsFolder
from ..checkpoints.source import Source
from ..jobs.errors import BadInputError
from ..jobs.spec import DType
from ..mapping.bindings import Model, held_in_fp32
from ..mapping.quantization import Quantized, quantized, without_quantization
from ..mapping.record import Record
from .config import model_of, read_record

STORED: dict[DType, str] = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""safetensors' names."""
CONFIGURED: dict[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""HF configs' names of safetensors' dtypes."""
_BY_CONFIG = {name: stored for stored, name in CONFIGURED.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class HFSource:
    """What an HF folder holds."""

    model: Model
    weights: Source
    config_json: bytes | None
    """The config of what is written, where it is not the folder's own: other dtype, no quantization."""


def open_hf(folder: Path, dtype: DType | None = None) -> HFSource:
    """Read config and headers. BadInputError on any field, or way of storing tensors, that is not understood."""
    config, stored = read_record(folder), SafetensorsFolder.open(folder)
    if quantized(config) is None and dtype is None:
        return HFSource(model=model_of(config), weights=stored, config_json=None)
    target = STORED[dtype] if dtype else _plain_dtype(config, stored)
    plain = without_quantization(config, CONFIGURED[target])
    model = model_of(plain)
    weights = _dequantized(config, stored, target)
    if dtype is not None:
        weights = CastSource.of(weights, target, held_in_fp32(model))
    return HFSource(model=model, weights=weights, config_json=as_json(plain))


def open_tensors(folder: Path) -> Source:
    """The weights alone, whatever model they make; dequantized where the config says that they are quantized."""
    config, stored = read_record(folder), SafetensorsFolder.open(folder)
    return _dequantized(config, stored, _plain_dtype(config, stored))


def open_precise(folder: Path) -> Source:
    """The weights as exact as they are known: quantized ones in fp32, which holds their products."""
    config, stored = read_record(folder), SafetensorsFolder.open(folder)
    return _dequantized(config, stored, "F32")


def _dequantized(config: Record, stored: SafetensorsFolder, dtype: str) -> Source:
    way = quantized(config)
    return stored if way is None else QuantizedFolder.of(stored, _scheme(way), dtype)


def as_json(config: Record) -> bytes:
    """config.json of these values."""
    return json.dumps(dict(config.values), indent=2).encode() + b"\n"


def _plain_dtype(config: Record, stored: SafetensorsFolder) -> str:
    """What dequantized tensors become: what the config says, else what the other tensors are in."""
    said = config.get("dtype") or config.get("torch_dtype")
    if said is None:
        return main_dtype(stored)
    if said not in _BY_CONFIG:
        raise BadInputError(
            "unsupported_config_value",
            f"{config.origin}: dtype",
            found=repr(said),
            expected=" or ".join(_BY_CONFIG),
            next_step="Say which one is wanted: `ferry import ... --dtype bf16`.",
        )
    return _BY_CONFIG[str(said)]


def _scheme(way: Quantized) -> Scheme:
    match way.method:
        case "fp8":
            return Fp8Blocks(*way.block)
        case "mxfp4":
            return Mxfp4Experts()
        case "int4":
            return Int4Packed(way.block[1])
