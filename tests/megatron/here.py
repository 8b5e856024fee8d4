"""On a rank: Megatron on whatever this rank has, a GPU of its own over NCCL or a CPU with what stands in for one."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import distributed

from worker.verification.off_cuda import megatron_on

from .saving import NamedAsOnCuda


@contextmanager
def megatron_here() -> Iterator[None]:
    """As a trainer's process."""
    if on_gpu():
        # A save would start a process of its own for this queue, which a rank of ours may not.
        with mock.patch.object(filesystem_async, "_results_queue", queue.Queue()):
            yield
        return
    with megatron_on("cpu"), NamedAsOnCuda(), mock.patch.object(torch.cuda, "current_stream", return_value=None):
        yield


def on_gpu() -> bool:
    """The ranks speak NCCL."""
    return distributed.get_backend() == "nccl"


def device() -> torch.device:
    """Where this rank's models are."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def seed() -> None:
    """Once Megatron's groups are made: layers that are built on a GPU draw from random states of their ranks."""
    if on_gpu():
        assert parallel_state.model_parallel_is_initialized()
        tensor_parallel.model_parallel_cuda_manual_seed(1234)
