"""Megatron-Core on a host without CUDA: what stands in for the device, for as long as it is asked for."""
# torch and Megatron are typed in part:
# pyright: basic

import queue
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.tensor_parallel import random
from torch.overrides import TorchFunctionMode


class _OffCuda(TorchFunctionMode):
    """Whatever is asked for on "cuda" is made on `device`."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = self._device
        if func is torch.Tensor.cuda:
            return args[0].to(self._device)
        return func(*args, **options)


@contextmanager
def megatron_on(device: str) -> Iterator[None]:
    """Megatron's models are built, run, saved and loaded on `device`: "cpu", or "meta" for shapes alone."""
    place = torch.device(device)
    with ExitStack() as stack:
        for name, stand_in in (
            ("current_device", lambda: place),
            ("synchronize", lambda *_: None),
            ("empty_cache", lambda: None),
            ("get_rng_state", lambda: torch.zeros(16, dtype=torch.uint8)),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        # A save would start a process of its own for this queue, only to pass results between threads.
        stack.enter_context(mock.patch.object(filesystem_async, "_results_queue", queue.Queue()))
        stack.enter_context(_random_states_of_no_device())
        stack.enter_context(_OffCuda(place))
        yield


@contextmanager
def _random_states_of_no_device() -> Iterator[None]:
    """The tracker meant for inference keeps no CUDA generators."""
    kept = random._CUDA_RNG_STATE_TRACKER, random._CUDA_RNG_STATE_TRACKER_INITIALIZED
    random.initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
    try:
        yield
    finally:
        random._CUDA_RNG_STATE_TRACKER, random._CUDA_RNG_STATE_TRACKER_INITIALIZED = kept
