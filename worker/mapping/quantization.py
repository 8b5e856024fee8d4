"""Quantized checkpoints: how HF's config says that tensors are stored, which says nothing of the model they make."""

from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class Quantized:
    """The way in which a checkpoint's weights are stored; `block` in rows and columns."""

    method: Literal["fp8", "mxfp4", "int4"]
    block: tuple[int, int]


def quantized(config: Record) -> Quantized | None:
    """What a config says of its tensors; None where they are plain. BadInputError for a way that cannot be read."""
    for name in FIELDS:
        stored = config.section(name)
        if stored is not None:
            return _read(stored)
    return None


def _read(stored: Record) -> Quantized:
    match stored.text("quant_method"):
        case "fp8":
            return Quantized("fp8", _fp8_block(stored))
        case "mxfp4":
            return Quantized("mxfp4", (1, 32))
        case "compressed-tensors":
            return Quantized("int4", (1, _int4_group(stored)))
        case _:
            raise stored.unsupported("quant_method", "'fp8', 'mxfp4' or 'compressed-tensors'", _DEQUANTIZE)


_DEQUANTIZE = "Dequantize the checkpoint to bf16 first; its config alone can be mapped as it is."


def _fp8_block(stored: Record) -> tuple[int, int]:
    """DeepSeek-V3's: e4m3 with a scale for each block of `weight_block_size`."""
    if stored.get("fmt") not in (None, "e4m3", "float8_e4m3fn"):
        raise stored.unsupported("fmt", "'e4m3'", _DEQUANTIZE)
    match stored.get("weight_block_size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case _:
            raise stored.unsupported("weight_block_size", "two sizes: one scale for each block of them", _DEQUANTIZE)


def _int4_group(stored: Record) -> int:
    """compressed-tensors' `pack-quantized`, symmetric, one scale for each group of a row's columns."""
    if stored.get("format") != "pack-quantized":
        raise stored.unsupported("format", "'pack-quantized'", _DEQUANTIZE)
    groups = stored.section("config_groups")
    sizes = {_group_size(groups, name) for name in groups.values} if groups else set[int]()
    if len(sizes) != 1:
        raise stored.unsupported("config_groups", "groups of columns of one size", _DEQUANTIZE)
    return sizes.pop()


def _group_size(groups: Record, name: str) -> int:
    group = groups.section(name)
    weights = group.section("weights") if group else None
    if weights is None:
        raise groups.unsupported(name, "a group with weights", _DEQUANTIZE)
    for field_name, value in (("num_bits", 4), ("type", "int"), ("symmetric", True), ("strategy", "group")):
        if weights.get(field_name) != value:
            raise weights.unsupported(field_name, repr(value), _DEQUANTIZE)
    if weights.get("actorder") is not None:
        raise weights.unsupported("actorder", "null", _DEQUANTIZE)
    return weights.positive("group_size")


def without_quantization(config: Record, dtype: str) -> Record:
    """The config of the same model with plain tensors in `dtype`, HF's name for it."""
    values = {name: value for name, value in config.values.items() if name not in FIELDS}
    spelled = "torch_dtype" if "torch_dtype" in values and "dtype" not in values else "dtype"
    if "torch_dtype" in values and spelled == "dtype":
        values["torch_dtype"] = dtype
    return Record({**values, spelled: dtype}, config.origin)


def refuse_quantized(config: Record) -> None:
    """BadInputError where tensors are quantized: a plan of their byte ranges would copy codes for weights."""
    for name in FIELDS:
        stored = config.section(name)
        if stored is not None:
            raise BadInputError(
                "unsupported_config_value",
                f"{config.origin}: field {name!r}",
                found=f"tensors quantized by {stored.get('quant_method')!r}",
                expected="tensors in bf16, fp16 or fp32",
                next_step=_DEQUANTIZE,
            )
