"""Quantized checkpoints: their configs map like any other, their tensors are refused until they can be read."""

from dataclasses import dataclass, field

from ..jobs.errors import BadInputError
from .record import Record

FIELDS = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True)
class Storage:
    """How the tensors are stored, which says nothing of the model that they make."""

    hf: tuple[str, ...] = field(default=FIELDS, init=False)
    mcore: tuple[str, ...] = field(default=(), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return {}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {}


def refuse_quantized(config: Record) -> None:
    """BadInputError where the tensors are quantized: a plan of byte ranges would copy codes for weights."""
    for name in FIELDS:
        stored = config.section(name)
        if stored is not None:
            raise BadInputError(
                "unsupported_config_value",
                f"{config.origin}: field {name!r}",
                found=f"tensors quantized by {stored.get('quant_method')!r}",
                expected="tensors in bf16, fp16 or fp32",
                next_step="Dequantize the checkpoint to bf16 first; its config alone can be mapped as it is.",
            )
