"""Megatron-LM's training program, whole, on a host without CUDA: what stands in for the device from start to end."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from megatron.core.tensor_parallel import random
from megatron.training import initialize, training

from worker.verification.off_cuda import megatron_on

from .saving import NamedAsOnCuda


@contextmanager
def program_on_cpu() -> Iterator[None]:
    """For arguments that name gloo, and nothing fused."""
    hopper = mock.Mock(major=9)
    stand_ins: dict[str, Any] = {
        "device_count": lambda: 8,
        "set_device": lambda *_: None,
        "get_device_properties": lambda *_: hopper,
        "get_device_capability": lambda *_: (9, 0),
        "Stream": mock.Mock,
        "stream": lambda *_: nullcontext(),
        "current_stream": mock.Mock,
        "set_rng_state": lambda *_: None,
    }
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        stand_ins[name] = lambda *_: 0
    with ExitStack() as stack:
        stack.enter_context(megatron_on("cpu"))
        stack.enter_context(NamedAsOnCuda())
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        # Recomputation keeps and restores it.
        stack.enter_context(mock.patch.object(random, "_get_cuda_rng_state", return_value=torch.zeros(16)))
        stack.enter_context(mock.patch.object(random, "_set_cuda_rng_state"))
        without_cuda = partial(initialize.initialize_megatron, allow_no_cuda=True)
        stack.enter_context(mock.patch.object(training, "initialize_megatron", without_cuda))
        yield
