"""Rotary positions: HF's `rope_theta`, `rope_scaling` and `rope_parameters` <-> Megatron's rope and yarn values."""

import math
from dataclasses import dataclass, field
from typing import Literal, cast

from ..jobs.errors import BadInputError
from .record import Record

RopeType = Literal["default", "llama3", "linear", "yarn"]

_LLAMA3_FIXED = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
_OPTIONS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", *_LLAMA3_FIXED}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}
_NULL_OPTIONS = frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"})
"""Options whose null HF takes for none; it reads a null `truncate` as false, and fails on the others."""
UNDECLARED_YARN = (
    "yarn_rotary_scaling_factor",
    "yarn_original_max_position_embeddings",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_mscale",
    "yarn_mscale_all_dim",
    "yarn_correction_range_round_to_int",
)
"""Read off the transformer config by `GPTModel`, though megatron-core 0.19's `TransformerConfig` declares none."""


@dataclass(frozen=True, slots=True)
class _Hf:
    """One reading of both spellings: transformers 5 `rope_parameters`, older `rope_theta` + `rope_scaling`."""

    kind: RopeType
    theta: float
    options: Record


@dataclass(frozen=True, slots=True)
class Rope:
    """Full-width rope of one base; Llama-3 scaling, linear interpolation or yarn on top."""

    default_theta: float = 10000.0
    hf: tuple[str, ...] = field(default=("rope_theta", "rope_scaling", "rope_parameters"), init=False)
    mcore: tuple[str, ...] = field(
        default=(
            "position_embedding_type",
            "rotary_base",
            "rotary_percent",
            "rope_scaling",
            "rope_scaling_factor",
            "seq_len_interpolation_factor",
            *UNDECLARED_YARN,
        ),
        init=False,
    )

    def to_mcore(self, config: Record) -> dict[str, object]:
        rope = self._read(config)
        # Upstream types rotary_base as an int; 500000.0 is 500000 there, 1234.5 stays what it is.
        base = int(rope.theta) if float(rope.theta).is_integer() else rope.theta
        common: dict[str, object] = {
            "position_embedding_type": "yarn" if rope.kind == "yarn" else "rope",
            "rotary_base": base,
            "rotary_percent": 1.0,
            "rope_scaling": rope.kind == "llama3",
        }
        match rope.kind:
            case "default":
                return common
            case "linear":
                return common | {"seq_len_interpolation_factor": float(rope.options.number("factor"))}
            case "llama3":
                return common | {"rope_scaling_factor": _llama3_factor(rope.options)}
            case "yarn":
                return common | _yarn_to_mcore(rope.options, config)

    def to_hf(self, values: Record) -> dict[str, object]:
        theta = float(values.number("rotary_base"))
        if values.number("rotary_percent", 1.0) != 1.0:
            raise values.unsupported("rotary_percent", "1.0", "This family's HF class rotates whole heads.")
        return {"rope_parameters": {"rope_theta": theta, **_scaling_to_hf(values)}}

    def _read(self, config: Record) -> _Hf:
        new, old = config.section("rope_parameters"), config.section("rope_scaling")
        options = dict((new or old or Record({}, config.origin)).values)
        top = config.get("rope_theta")
        theta = options.pop("rope_theta", None) or top or self.default_theta
        name = options.pop("rope_type", None) or options.pop("type", None) or "default"
        options.pop("type", None)
        where = Record(options, f"{config.origin}: rope of type {name!r}")
        _refuse_contradiction(config, new, old)
        _refuse_unknown(where, name)
        return _Hf(cast(RopeType, name), Record({"theta": theta}, config.origin).number("theta"), where)


def _refuse_contradiction(config: Record, new: Record | None, old: Record | None) -> None:
    if new is None or old is None:
        return
    for name, value in old.values.items():
        if new.get("rope_type" if name == "type" else name) != value:
            raise config.wrong("rope_scaling", f"the same as rope_parameters ({new.values!r})")


def _refuse_unknown(options: Record, name: object) -> None:
    if not isinstance(name, str) or name not in _OPTIONS:
        raise BadInputError(
            "unsupported_config_value",
            options.origin,
            found=repr(name),
            expected=" or ".join(sorted(_OPTIONS)),
            next_step="Megatron-Core 0.19 has no such rope; this model cannot be converted faithfully.",
        )
    for option, value in options.values.items():
        if value is None and option not in _NULL_OPTIONS:
            raise options.wrong(option, "a value, or no such option")
        if option not in _OPTIONS[name] and (option, value) != ("partial_rotary_factor", 1.0):
            raise BadInputError(
                "unknown_config_field",
                f"{options.origin}: field {option!r}",
                found=repr(value),
                expected=f"one of {sorted(_OPTIONS[name])}",
                next_step="Add it to worker/mapping/rope.py, or remove it where it has no effect.",
            )


def _llama3_factor(options: Record) -> float:
    for name, fixed in _LLAMA3_FIXED.items():
        if options.number(name) != fixed:
            raise options.unsupported(name, str(fixed), "Megatron-Core 0.19 fixes this value for Llama-3 scaling.")
    return float(options.number("factor"))


def _yarn_to_mcore(options: Record, config: Record) -> dict[str, object]:
    longest = config.positive("max_position_embeddings")
    original = options.positive("original_max_position_embeddings", longest)
    factor = float(options.number("factor", longest / original))
    mscale, mscale_all_dim = _yarn_mscales(options, factor)
    return {
        "yarn_rotary_scaling_factor": factor,
        "yarn_original_max_position_embeddings": original,
        # HF takes its default for 0 as well as for null.
        "yarn_beta_fast": float(options.number("beta_fast", 32.0) or 32.0),
        "yarn_beta_slow": float(options.number("beta_slow", 1.0) or 1.0),
        "yarn_mscale": mscale,
        "yarn_mscale_all_dim": mscale_all_dim,
        "yarn_correction_range_round_to_int": options.boolean("truncate", True),
    }


def _yarn_mscales(options: Record, factor: float) -> tuple[float, float]:
    """Megatron scales by s(mscale) / s(mscale_all_dim), s(m) = 0.1 m ln(factor) + 1; HF may give the ratio itself."""
    if options.get("attention_factor") is not None:
        if factor <= 1:
            raise options.unsupported("attention_factor", "null where factor <= 1", "Megatron derives it from mscale.")
        return (float(options.number("attention_factor")) - 1.0) / (0.1 * math.log(factor)), 0.0
    mscale, mscale_all_dim = options.number("mscale", 0.0), options.number("mscale_all_dim", 0.0)
    if mscale and mscale_all_dim:
        return float(mscale), float(mscale_all_dim)
    return 1.0, 0.0


def _scaling_to_hf(values: Record) -> dict[str, object]:
    if values.text("position_embedding_type") == "yarn":
        return _yarn_to_hf(values)
    if values.text("position_embedding_type") != "rope":
        raise values.unsupported("position_embedding_type", "'rope' or 'yarn'", "This family's HF class uses rope.")
    if values.boolean("rope_scaling", False):
        return {"rope_type": "llama3", "factor": values.number("rope_scaling_factor", 8.0), **_LLAMA3_FIXED}
    if values.get("seq_len_interpolation_factor") is not None:
        return {"rope_type": "linear", "factor": values.number("seq_len_interpolation_factor")}
    return {"rope_type": "default"}


def _yarn_to_hf(values: Record) -> dict[str, object]:
    mscale, mscale_all_dim = values.number("yarn_mscale", 1.0), values.number("yarn_mscale_all_dim", 0.0)
    factor = float(values.number("yarn_rotary_scaling_factor"))
    if mscale and mscale_all_dim:
        scale: dict[str, object] = {"mscale": mscale, "mscale_all_dim": mscale_all_dim}
    elif (mscale, mscale_all_dim) == (1.0, 0.0) or factor <= 1:
        scale = {}
    else:
        numerator = 0.1 * mscale * math.log(factor) + 1.0
        scale = {"attention_factor": numerator / (0.1 * mscale_all_dim * math.log(factor) + 1.0)}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": values.integer("yarn_original_max_position_embeddings"),
        "beta_fast": values.number("yarn_beta_fast", 32.0),
        "beta_slow": values.number("yarn_beta_slow", 1.0),
        "truncate": values.boolean("yarn_correction_range_round_to_int", True),
        **scale,
    }
