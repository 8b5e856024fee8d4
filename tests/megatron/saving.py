"""On a rank: what a training run leaves, saved by Megatron's own training program, optimizer and all."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.training import checkpointing, global_vars
from torch.overrides import TorchFunctionMode

from worker.verification.off_cuda import megatron_on

from .model import build, load
from .training import arguments

ITERATION = 10


def save_as_trained(
    root: Path, target: Path, tp_size: int, pp_size: int, optimizer_format: str, described: tuple[str, ...] = ()
) -> None:
    """The model at `root`, its weights untouched, after a training step at these sizes, saved at `target`.

    `optimizer_format` is upstream's name for how a distributed optimizer lays out its state; `described` is the
    command line that describes the model, if one does.
    """
    with megatron_on("cpu"), _NamedAsOnCuda():
        model = build(root, tp_size, pp_size)
        load(model, root)
        wrapped = DistributedDataParallel(
            model.config, DistributedDataParallelConfig(use_distributed_optimizer=True), model
        )
        options = arguments(model, "--save", str(target), "--use-distributed-optimizer", *described)
        options.dist_ckpt_optim_fully_reshardable = optimizer_format == "fully_reshardable"
        with mock.patch.object(global_vars, "_GLOBAL_ARGS", options):
            checkpointing.save_checkpoint(ITERATION, [wrapped], _stepped_optimizer(wrapped), None, 0)


def save_as_torch(root: Path, target: Path, tp_size: int, pp_size: int, described: tuple[str, ...]) -> None:
    """The model at `root` as Megatron saved it before `torch_dist`: a pickle a rank, the optimizer's state inside.

    `described` is the command line that describes the model; it is saved along.
    """
    with megatron_on("cpu"), _NamedAsOnCuda():
        model = build(root, tp_size, pp_size)
        load(model, root)
        options = arguments(model, "--save", str(target), "--ckpt-format", "torch", *described)
        wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=0.0, weight_decay=0.0), [wrapped])
        _step(optimizer)
        with mock.patch.object(global_vars, "_GLOBAL_ARGS", options):
            checkpointing.save_checkpoint(ITERATION, [wrapped], optimizer, None, 0)


def _stepped_optimizer(model: DistributedDataParallel) -> ChainedOptimizer:
    """A distributed optimizer with moments of its own, at a learning rate that leaves the weights as they are."""
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=0.0, weight_decay=0.0, use_distributed_optimizer=True), [model]
    )
    assert isinstance(optimizer, ChainedOptimizer)
    _step(optimizer)
    return optimizer


def _step(optimizer: Any) -> None:
    [inner] = optimizer.chained_optimizers
    for group in inner.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    inner.optimizer.step()


class _NamedAsOnCuda(TorchFunctionMode):
    """The optimizer tells dtypes by the name of the CUDA tensor's type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        asked_for_name = func is torch.Tensor.type and len(args) == 1 and not kwargs
        return answer.replace("torch.", "torch.cuda.") if asked_for_name else answer
