"""An HF folder's weights as plain tensors, whatever its config says of quantization."""

from pathlib import Path

from ..checkpoints.cast_source import main_dtype
from ..checkpoints.quantized_folder import Fp8Blocks, Int4Packed, Mxfp4Experts, QuantizedFolder, Scheme
from ..checkpoints.safetensors_folder import SafetensorsFolder
from ..checkpoints.source import Source
from ..jobs.errors import BadInputError
from ..mapping.quantization import Quantized, quantized
from ..mapping.record import Record

CONFIGURED: dict[str, str] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""HF configs' names of safetensors' dtypes."""
_BY_CONFIG = {name: stored for stored, name in CONFIGURED.items()}


def open_plain(config: Record, folder: Path) -> Source:
    """The weights, dequantized where the config says that they are quantized. Reads headers."""
    stored = SafetensorsFolder.open(folder)
    return dequantized(config, stored, plain_dtype(config, stored))


def dequantized(config: Record, stored: SafetensorsFolder, dtype: str) -> Source:
    """`stored` where nothing is quantized; else its tensors in `dtype`, in safetensors' spelling."""
    way = quantized(config)
    return stored if way is None else QuantizedFolder.of(stored, _scheme(way), dtype)


def plain_dtype(config: Record, stored: SafetensorsFolder) -> str:
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
