"""On a rank: how many parameters its part of a model has."""

from pathlib import Path

from worker.verification.off_cuda import megatron_on

from .model import build


def parameters(root: Path, tp_size: int, pp_size: int, ep_size: int, last_stage_layers: int | None = None) -> int:
    """Those that it shares with another stage included."""
    with megatron_on("cpu"):
        model = build(root, tp_size, pp_size, None, ep_size, last_stage_layers)
    return sum(parameter.numel() for parameter in model.parameters())
