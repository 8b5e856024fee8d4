"""Stand-in for quantization recipes: Megatron names these classes, and nothing here is quantized."""

from enum import Enum


class Format(Enum):
    """Number formats."""

    E4M3 = "e4m3"
    HYBRID = "hybrid"


class Recipe:
    """How numbers would be quantized."""


class DelayedScaling(Recipe):
    """Scales from earlier steps."""


class Float8CurrentScaling(Recipe):
    """Scales from this step."""


class Float8BlockScaling(Recipe):
    """Scales per block."""


class MXFP8BlockScaling(Recipe):
    """Scales per 32 values."""


class NVFP4BlockScaling(Recipe):
    """Scales per 16 values."""
