"""On a rank: what trainers call beside adapters: configs, checkpoints at a path, value heads, frozen routers."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection

from worker.integration import (
    configure,
    create_ddp_config,
    create_peft,
    create_peft_hook,
    finalize_model_config,
    for_this_host,
    freeze_moe_router,
    generate_model_state_dict,
    hf_to_mcore,
    load_checkpoint,
    load_model_config,
    make_value_model,
    mcore_to_hf,
    merged_adapters,
    model_checkpoint,
    save_checkpoint,
)

from .adapters import Sizes, adapted, built
from .here import device, megatron_here
from .model import forget_attention_backend, forward, leave_groups, load, set_parallelism

SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
)


def configured(root: Path, tp_size: int, pp_size: int, overrides: dict[str, object]) -> dict[str, Any]:
    """What `configure` makes of a config where Megatron's groups are there."""
    set_parallelism(tp_size, pp_size)
    seen: list[object] = []
    given = for_this_host(load_model_config(root))
    hooks = (lambda config: seen.append(config.transformer.tensor_model_parallel_size),)
    ready = configure(given, dtype="bf16", overrides=overrides, pre_finalize_hooks=hooks)
    return {
        **{name: getattr(ready.transformer, name) for name in (*SIZES, "bf16", "fp16", "sequence_parallel")},
        "dtypes": (str(ready.transformer.params_dtype), str(ready.transformer.pipeline_dtype)),
        "seq_length": ready.seq_length,
        "hooks saw": seen,
        "before": given.transformer.tensor_model_parallel_size,
    }


def saved(root: Path, target: Path, sizes: Sizes, content: Mapping[str, bool] = MappingProxyType({})) -> None:
    """A model after a step, with its optimizer, at an explicit path; its keys as a trainer's own `content` has them."""
    with megatron_here(), mock.patch.dict(model_checkpoint.CONTENT, content):
        model, optimizer = _stepped(root, sizes)
        save_checkpoint([model], target, optimizer=optimizer, common={"iteration": 7, "note": "kept"})


def saved_as_loaded(root: Path, target: Path, sizes: Sizes) -> None:
    """The model at `root`, its weights untouched, saved at these sizes."""
    with megatron_here():
        model = built(root, sizes)
        load(model, root)
        save_checkpoint([model], target)


def loaded(root: Path, source: Path, sizes: Sizes) -> tuple[dict[str, Any], bool, float]:
    """Its common values; whether a model after the same step is the same; and the largest moment of the optimizer."""
    with megatron_here():
        reference, _ = _stepped(root, sizes)
        model = DistributedDataParallel(reference.config, create_ddp_config(), built(root, sizes))
        optimizer = _optimizer(model)
        common = load_checkpoint([model], source, optimizer=optimizer)
    state = model.module.state_dict()
    same = all(
        torch.allclose(value, state[name], atol=1e-5)
        for name, value in reference.module.state_dict().items()
        if "_extra_state" not in name and name in state
    )
    return {key: common[key] for key in ("iteration", "note")}, same, _largest_moment(optimizer)


def values(root: Path, tokens: list[list[int]], sizes: Sizes) -> tuple[Any, list[str], bool]:
    """The values of a value model, what of its last layer trains, and its head's gradient is there."""
    with megatron_here():
        model = built(root, sizes)
        load(model, root)
        [model] = make_value_model([model])
        answer = forward(model.train(), torch.tensor(tokens, device=device()))
        answer.square().sum().backward()
        head = [name for name, _ in model.named_parameters() if name.startswith("output_layer")]
        state = generate_model_state_dict([model])["model"]
    return answer.detach().numpy(), head, "output_layer.weight" in state


def frozen(root: Path) -> tuple[list[str], int]:
    """Parameters that a model with frozen routers does not train, and how many it does."""
    with megatron_here():
        [model] = freeze_moe_router([built(root, {})])
    still = [name for name, value in model.named_parameters() if not value.requires_grad]
    return still, sum(1 for value in model.parameters() if value.requires_grad)


def trained_in_a_pipeline(root: Path, peft: dict[str, Any], tokens: list[list[int]]) -> tuple[set[str], set[str]]:
    """Megatron's own schedule over two stages, with what `finalize_model_config` gave it; what changed, what not."""
    with megatron_here():
        model = adapted(root, peft, {"pp_size": 2}).train()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        wrapped = DistributedDataParallel(model.config, create_ddp_config(), model)
        optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=0.1, clip_grad=1.0), [wrapped])
        finalize_model_config([wrapped], optimizer)
        get_forward_backward_func()(
            forward_step_func=partial(_forward_step),
            data_iterator=iter([torch.tensor(tokens)] * 2),
            model=[wrapped],
            num_microbatches=2,
            seq_length=len(tokens[0]),
            micro_batch_size=len(tokens),
            forward_only=False,
        )
        optimizer.step()
    after = dict(model.named_parameters())
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    return changed, before.keys() - changed


def refit(root: Path, source: Path, peft: dict[str, Any], pp_size: int, vpp_size: int | None) -> dict[str, Any]:
    """As the wheel's page says: built by upstream's builder with our hook, wrapped, its merged weights streamed."""
    wanted = create_peft(peft)
    assert wanted is not None
    with megatron_here():
        leave_groups()
        parallel_state.initialize_model_parallel(1, pp_size, vpp_size)
        forget_attention_backend()
        config = configure(for_this_host(load_model_config(root)), dtype="fp32")
        config.pre_wrap_hooks.append(create_peft_hook(wanted, lambda chunks: hf_to_mcore(chunks, source)))
        groups = ProcessGroupCollection.use_mpu_process_groups()
        # Upstream's own wrapping opens a CUDA stream.
        chunks = config.get_builder_cls()(config).build_distributed_models(groups, wrap_with_ddp=False)
        models = [DistributedDataParallel(chunk.config, create_ddp_config(), chunk) for chunk in chunks]
        plain = {name: tensor.numpy().copy() for name, tensor in mcore_to_hf(models, config)}
        with merged_adapters(models):
            merged = {name: tensor.numpy().copy() for name, tensor in mcore_to_hf(models, config)}
        leave_groups()
    return {"chunks": len(models), "plain": plain, "merged": merged}


def _forward_step(batches: Iterator[torch.Tensor], model: torch.nn.Module) -> Any:
    tokens = next(batches)
    answer = model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)
    return answer, partial(_loss, tokens)


def _loss(tokens: torch.Tensor, answer: torch.Tensor) -> Any:
    loss = torch.nn.functional.cross_entropy(answer[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return loss, {"loss": loss.detach()}


def _stepped(root: Path, sizes: Sizes) -> tuple[DistributedDataParallel, Any]:
    model = built(root, sizes).train()
    load(model, root)
    wrapped = DistributedDataParallel(model.config, create_ddp_config(), model)
    optimizer = _optimizer(wrapped)
    finalize_model_config([wrapped], optimizer)
    for parameter in model.parameters():
        parameter.main_grad.fill_(0.5)
    optimizer.step()
    return wrapped, optimizer


def _optimizer(model: DistributedDataParallel) -> Any:
    return get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=0.01, weight_decay=0.0, clip_grad=0.0), [model])


def _largest_moment(optimizer: Any) -> float:
    [inner] = optimizer.chained_optimizers
    return max(float(state["exp_avg"].abs().max()) for state in inner.optimizer.state.values())
