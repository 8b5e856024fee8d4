"""Softcaps: values bounded smoothly, `cap * tanh(x / cap)`."""

from functools import partial

import torch


def softcapped(x: torch.Tensor, cap: float) -> torch.Tensor:
    """Within (-cap, cap); all but unchanged where far smaller."""
    return cap * torch.tanh(x / cap)


def softcap_output(layer: torch.nn.Module, cap: float) -> None:
    """From now on softcap what `layer`, one of Megatron's output layers, answers: logits and bias."""
    layer.register_forward_hook(partial(_cap_logits, cap=cap))


def _cap_logits(
    layer: torch.nn.Module, inputs: object, output: tuple[torch.Tensor, object], *, cap: float
) -> tuple[torch.Tensor, object]:
    logits, bias = output
    return softcapped(logits, cap), bias
