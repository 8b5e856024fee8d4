"""Routers that training leaves alone."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence
from typing import Any

from megatron.core.transformer.moe.router import TopKRouter
from torch import nn


def freeze_moe_router(model: Sequence[nn.Module]) -> list[nn.Module]:
    """A pre-wrap hook: routers' weights, biases and experts' biases, and shared experts' gates, stay as they are.

    Reinforcement learning drifts where routes do (verl, `freeze_moe_router`).
    """
    for chunk in model:
        for name, module in chunk.named_modules():
            if isinstance(module, TopKRouter):
                module.requires_grad_(False)
                router: Any = module
                router.frozen_expert_bias = True
            elif name.endswith("shared_experts") and getattr(module, "gate_weight", None) is not None:
                shared: Any = module
                shared.gate_weight.requires_grad_(False)
    return list(model)
