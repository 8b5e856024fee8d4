"""A model as trainers hold it: one chunk, or one for each virtual pipeline stage, each in its wrappers."""

from collections.abc import Sequence
from typing import Any, cast

from megatron.core.utils import unwrap_model  # pyright: ignore[reportUnknownVariableType]  # without types upstream
from torch import nn


def chunks_of(model: Sequence[nn.Module] | nn.Module) -> list[nn.Module]:
    """Its chunks: several with virtual pipeline stages."""
    return [model] if isinstance(model, nn.Module) else list(model)


def stage_of(chunk: nn.Module) -> nn.Module:
    """The model inside DDP and the like."""
    return cast(Any, unwrap_model)(chunk)
