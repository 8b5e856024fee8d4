"""On a rank: a trainer that owns its loop, by our public helpers alone, from what a setup for verl leaves: LoRA.

It tells its losses as Megatron-LM's program does.
"""

import argparse
import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed

from tests.megatron.program import program_on_cpu
from worker.integration import (
    configure,
    create_ddp_config,
    create_peft,
    create_peft_hook,
    finalize_model_config,
    for_this_host,
    load_checkpoint,
    load_model_config,
    load_peft_adapter_checkpoint,
    save_peft_adapter_checkpoint,
)

from .local_layers import local_layers, name_expert_norms
from .watch import Watch

Model = list[torch.nn.Module]


def main() -> None:
    """Groups, a model with adapters, a few steps, and the adapter saved."""
    given = _parser().parse_args()
    with ExitStack() as stack:
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            stack.enter_context(program_on_cpu())
        stack.enter_context(local_layers(flash=given.attention == "flash"))
        distributed.init_process_group("nccl" if on_gpu else "gloo")
        torch.cuda.set_device(distributed.get_rank())
        parallel_state.initialize_model_parallel(given.tp)
        tensor_parallel.model_parallel_cuda_manual_seed(1234)
        _train(given, dict(np.load(given.batch)))
        distributed.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setup", type=Path, required=True)
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--batch", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--tp", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--attention", choices=("local", "flash"), required=True)
    return parser


def _train(given: argparse.Namespace, batch: dict[str, np.ndarray]) -> None:
    peft = create_peft(json.loads((given.setup / "peft_config.json").read_text()))
    assert peft is not None
    models = _models(given, peft)
    before = {name: value.detach().clone() for name, value in models[0].named_parameters()}
    wanted = OptimizerConfig(optimizer="adam", lr=3e-3, bf16=True, params_dtype=torch.bfloat16)
    wanted.use_distributed_optimizer = True
    optimizer = get_megatron_optimizer(wanted, models)
    finalize_model_config(models, optimizer)
    watch = Watch(length=batch["tokens"].shape[1])
    tensors = {name: torch.from_numpy(value).cuda() for name, value in batch.items()}
    init_num_microbatches_calculator(distributed.get_rank(), None, 1, 1, 1)
    for step in range(1, given.steps + 1):
        _tell(f"iteration {step:8d}/{given.steps:8d} | lm loss: {_step(models, optimizer, watch, tensors):.6E} |")
    loss = _forward_backward(models, watch, tensors, forward_only=True)
    _tell(f"validation loss at iteration {given.steps} on validation set | lm loss value: {loss:.6E} |")
    changed = {name for name, value in models[0].named_parameters() if not torch.equal(value, before[name])}
    _tell(f"{len(changed)} tensors changed, {sum('.adapter.' not in name for name in changed)} of them the base's")
    save_peft_adapter_checkpoint(models, given.save, peft)
    watch.finish()
    watch.write(given.report)


def _models(given: argparse.Namespace, peft: Any) -> Model:
    def base(chunks: Model) -> None:
        name_expert_norms(chunks)
        load_checkpoint(chunks, given.setup / "release")
        _tell(f"successfully loaded checkpoint from {given.setup} at iteration 0")

    def adapter(chunks: Model) -> None:
        load_peft_adapter_checkpoint(chunks, given.setup / "adapter" / "release", peft)

    overrides = {"sequence_parallel": given.tp > 1}
    config: Any = configure(for_this_host(load_model_config(given.setup)), dtype="bf16", overrides=overrides)
    config.pre_wrap_hooks.append(create_peft_hook(peft, base, adapter))
    said = json.loads((given.setup / "ddp_config.json").read_text())
    names = ("grad_reduce_in_fp32", "check_for_nan_in_grad")
    ddp = create_ddp_config(use_distributed_optimizer=True, overrides={name: said[name] for name in names})
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return config.get_builder_cls()(config).build_distributed_models(groups, ddp_config=ddp)


def _step(models: Model, optimizer: Any, watch: Watch, batch: dict[str, torch.Tensor]) -> float:
    for model in models:
        model.zero_grad_buffer()  # pyright: ignore[reportCallIssue]  # of Megatron's DDP
    optimizer.zero_grad()
    loss = _forward_backward(models, watch, batch, forward_only=False)
    optimizer.step()
    return loss


def _forward_backward(models: Model, watch: Watch, batch: dict[str, torch.Tensor], *, forward_only: bool) -> float:
    samples, length = batch["tokens"].shape
    answers = get_forward_backward_func()(
        forward_step_func=partial(_forward, watch, training=not forward_only),
        data_iterator=iter([batch]),
        model=models,
        num_microbatches=1,
        seq_length=length,
        micro_batch_size=samples,
        forward_only=forward_only,
    )
    return answers[0]["loss"].item()


def _forward(watch: Watch, batches: Any, model: Any, *, training: bool) -> tuple[torch.Tensor, Any]:
    given = next(batches)
    if training:
        watch.micro_batch(model, given["tokens"], 1)
    places = torch.arange(given["tokens"].shape[1], device=given["tokens"].device).expand_as(given["tokens"])
    with watch.forward(model):
        losses = model(given["tokens"], places, None, labels=given["labels"])
    return losses, _mean


def _mean(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = losses.float().mean()
    return loss, {"loss": loss.detach()}


def _tell(text: str) -> None:
    if distributed.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
