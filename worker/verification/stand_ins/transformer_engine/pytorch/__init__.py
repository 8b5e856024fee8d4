"""Stand-in for `transformer_engine.pytorch`."""

from . import distributed, fp8, ops
from .attention import DotProductAttention
from .linear import GroupedLinear, LayerNormLinear, Linear
from .norms import LayerNorm, RMSNorm

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "distributed",
    "fp8",
    "ops",
]
