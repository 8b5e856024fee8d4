"""The norm of a gated delta net's output: its weight is the factor itself, where other norms add one to theirs."""

from typing import Any

from megatron.core.ssm.gated_delta_net import GatedDeltaNet
from torch import nn


def uncenter_gated_norms(model: nn.Module) -> None:
    """Let these norms of a stage multiply by their weights as they are.

    Upstream builds them with the config's `layernorm_zero_centered_gamma`; Qwen3-Next has both kinds in one model.
    """
    for module in model.modules():
        if isinstance(module, GatedDeltaNet):
            net: Any = module
            net.out_norm.zero_centered_gamma = False
