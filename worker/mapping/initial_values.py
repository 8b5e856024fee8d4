"""What a fresh model's tensors are drawn from, as Megatron-Core initialises them.

Source: `init_method_normal`, `scaled_init_method_normal` and the modules of megatron-core 0.19, `MambaMixer` too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from ..jobs.errors import BadInputError
from .bindings import Binding, Model, bindings
from .precision import HELD_IN_FP32

Law = Literal["constant", "normal", "uniform", "log_of_uniform", "softplus_inverse_of_log_uniform"]

_STD = 0.02
_SCALED = (".linear_proj.weight", ".linear_fc2.weight", ".out_proj.weight")
"""Layers that write to the residual stream."""
_NORMS = ("norm.weight", "layer_norm_weight", "layernorm.weight")
_DT = (0.001, 0.1)
_A = (1.0, 16.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialValues:
    """Of one HF tensor."""

    shape: tuple[int, ...]
    law: Law
    low: float
    high: float = 0.0
    in_fp32: bool
    """Its modules hold it so, whatever the others are in."""


def initial_values(model: Model) -> dict[str, InitialValues]:
    """Every HF tensor of the model, by name, but for those that are copies of others."""
    found: dict[str, InitialValues] = {}
    for binding in bindings(model):
        for name, values in _of(binding, model):
            found.setdefault(name, values)
    return found


def _of(binding: Binding, model: Model) -> Iterator[tuple[str, InitialValues]]:
    law, low, high = _law(binding.target.name, binding, model)
    in_fp32 = binding.target.name.endswith(HELD_IN_FP32)
    for part in binding.parts:
        shape = (*part.stack, *part.shape)
        yield part.source.name, InitialValues(shape=shape, law=law, low=low, high=high, in_fp32=in_fp32)


def _law(name: str, binding: Binding, model: Model) -> tuple[Law, float, float]:
    """Its kind, and mean and deviation, or an interval."""
    values = model.mcore
    std = float(values.number("init_method_std", _STD))
    if name.endswith(_NORMS):
        # Upstream's gated delta rule keeps its output's norm as it is where all others hold weight - 1.
        less_one = values.get("layernorm_zero_centered_gamma") and not name.endswith(".out_norm.weight")
        return "constant", 0.0 if less_one else 1.0, 0.0
    if ".conv1d." in name:
        bound = 1 / sqrt(binding.shape[-1] if len(binding.shape) > 1 else values.integer("mamba_conv_kernel", 4))
        return "uniform", -bound, bound
    if name.endswith(".A_log"):
        return "log_of_uniform", *_A
    if name.endswith(".self_attention.dt_bias"):  # the gated delta rule's
        return "constant", 1.0, 0.0
    if name.endswith(".dt_bias"):
        return "softplus_inverse_of_log_uniform", *_DT
    if name.endswith(".D"):
        return "constant", 1.0, 0.0
    if name.endswith((".bias", ".expert_bias")):
        return "constant", 0.0, 0.0
    if name.endswith(_SCALED):
        return "normal", 0.0, std / sqrt(2.0 * values.integer("num_layers"))
    if name.endswith((".weight", ".gate_weight", ".softmax_offset")) or ".in_proj.weight." in name:
        return "normal", 0.0, std
    raise BadInputError(
        "unsupported_config_value",
        f"init: random for Megatron tensor {name!r}",
        found="a tensor of which it is not known how a fresh model has it",
        expected="weights, biases, norms and what Mamba layers have",
        next_step="Start from a checkpoint's weights.",
    )
