"""On a rank: what a training run leaves, saved by Megatron's own training program, optimizer and all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training import checkpointing, global_vars
from torch.overrides import TorchFunctionMode

from worker.integration import configure, create_ddp_config, for_this_host, load_model_config, save_checkpoint
from worker.verification.off_cuda import megatron_on

from .model import build, forget_attention_backend, leave_groups, load
from .training import arguments

ITERATION = 10


def save_as_trained(
    root: Path,
    target: Path,
    tp_size: int,
    pp_size: int,
    optimizer_format: str,
    described: tuple[str, ...] = (),
    ep_size: int = 1,
    content: Mapping[str, bool] = MappingProxyType({}),
) -> None:
    """The model at `root`, its weights untouched, after a training step at these sizes, saved at `target`.

    `optimizer_format` is upstream's name for how a distributed optimizer lays out its state; `described` is the
    command line that describes the model, if one does; `content` is what a trainer says of the keys that it saves by.
    """
    with megatron_on("cpu"), NamedAsOnCuda(), content_of_what_is_saved(content):
        model = build(root, tp_size, pp_size, ep_size=ep_size)
        load(model, root)
        wrapped = DistributedDataParallel(
            model.config, DistributedDataParallelConfig(use_distributed_optimizer=True), model
        )
        options = arguments(model, "--save", str(target), "--use-distributed-optimizer", *described)
        options.dist_ckpt_optim_fully_reshardable = optimizer_format == "fully_reshardable"
        with mock.patch.object(global_vars, "_GLOBAL_ARGS", options):
            checkpointing.save_checkpoint(ITERATION, [wrapped], _stepped_optimizer(wrapped), None, 0)


@contextmanager
def content_of_what_is_saved(content: Mapping[str, bool]) -> Iterator[None]:
    """Upstream's program has no arguments for these; trainers with one of their own set them."""
    ordinary = checkpointing._build_sharded_state_dict_metadata

    def more(*arguments: Any, **options: Any) -> dict[str, Any]:
        return {**ordinary(*arguments, **options), **content}

    with mock.patch.object(checkpointing, "_build_sharded_state_dict_metadata", more):
        yield


def save_as_torch(root: Path, target: Path, tp_size: int, pp_size: int, described: tuple[str, ...]) -> None:
    """The model at `root` as Megatron saved it before `torch_dist`: a pickle a rank, the optimizer's state inside.

    `described` is the command line that describes the model; it is saved along.
    """
    with megatron_on("cpu"), NamedAsOnCuda():
        model = build(root, tp_size, pp_size)
        load(model, root)
        options = arguments(model, "--save", str(target), "--ckpt-format", "torch", *described)
        wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=0.0, weight_decay=0.0), [wrapped])
        _step(optimizer)
        with mock.patch.object(global_vars, "_GLOBAL_ARGS", options):
            checkpointing.save_checkpoint(ITERATION, [wrapped], optimizer, None, 0)


def save_stages_as_trained(root: Path, target: Path, sizes: dict[str, int]) -> tuple[int, int]:
    """The same by `save_checkpoint` alone, at any sizes, `vpp_size`, `ep_size` and `etp_size` among them.

    How many chunks of the model this rank has, and how many optimizers.
    """
    with megatron_on("cpu"), NamedAsOnCuda():
        chunks = _chunks(root, sizes)
        for chunk in chunks:
            load(chunk, root)
        ddp = create_ddp_config(use_distributed_optimizer=True)
        wrapped = [DistributedDataParallel(chunk.config, ddp, chunk) for chunk in chunks]
        optimizer = _stepped_optimizer(*wrapped)
        save_checkpoint(wrapped, target, optimizer=optimizer)
        leave_groups()
    return len(chunks), len(optimizer.chained_optimizers)


def _chunks(root: Path, sizes: dict[str, int]) -> list[Any]:
    """This rank's virtual stages, by upstream's builder."""
    leave_groups()
    parallel_state.initialize_model_parallel(
        sizes.get("tp_size", 1),
        sizes.get("pp_size", 1),
        sizes.get("vpp_size"),
        expert_model_parallel_size=sizes.get("ep_size", 1),
        expert_tensor_parallel_size=sizes.get("etp_size", 1),
    )
    forget_attention_backend()
    config = configure(for_this_host(load_model_config(root)), dtype="fp32")
    config.transformer.sequence_parallel = bool(sizes.get("sp"))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return config.get_builder_cls()(config).build_distributed_models(groups, wrap_with_ddp=False)


def _stepped_optimizer(*model: DistributedDataParallel) -> ChainedOptimizer:
    """A distributed optimizer with moments of its own, at a learning rate that leaves the weights as they are."""
    optimizer = get_megatron_optimizer(
        OptimizerConfig(optimizer="adam", lr=0.0, weight_decay=0.0, use_distributed_optimizer=True), list(model)
    )
    assert isinstance(optimizer, ChainedOptimizer)
    _step(optimizer)
    return optimizer


def _step(optimizer: Any) -> None:
    for inner in optimizer.chained_optimizers:  # experts on ranks of their own have one of their own
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        inner.optimizer.step()


class NamedAsOnCuda(TorchFunctionMode):
    """The optimizer tells dtypes by the name of the CUDA tensor's type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        asked_for_name = func is torch.Tensor.type and len(args) == 1 and not kwargs
        return answer.replace("torch.", "torch.cuda.") if asked_for_name else answer
