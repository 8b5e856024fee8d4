"""On a rank: models with adapters, built, trained a step, saved and loaded with what trainers are given."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from worker.integration import (
    configure,
    create_ddp_config,
    create_peft,
    create_peft_hook,
    finalize_model_config,
    for_this_host,
    load_model_config,
    load_peft_adapter_checkpoint,
    merged_adapters,
    save_peft_adapter_checkpoint,
)

from .here import device, megatron_here, seed
from .model import forget_attention_backend, forward, load, set_parallelism

Values = dict[str, Any]
Sizes = dict[str, int]
"""tp_size, pp_size, ep_size, and sp: 1 where the sequence is cut."""

_UNCOMPILED = dict.fromkeys(("bias_activation_fusion", "bias_dropout_fusion", "cross_entropy_loss_fusion"), False)
"""A host with a GPU may lack what compiles these."""


def built(root: Path, sizes: Sizes, **overrides: object) -> Any:
    """This rank's part of the model at `root`, in fp32, with random weights."""
    tp_size, sequence_parallel = sizes.get("tp_size", 1), bool(sizes.get("sp", 0))
    set_parallelism(tp_size, sizes.get("pp_size", 1), sizes.get("ep_size", 1), sizes.get("etp_size", tp_size))
    seed()
    forget_attention_backend()
    given = {"parallel_output": False, "sequence_parallel": sequence_parallel, **_UNCOMPILED, **overrides}
    config = configure(for_this_host(load_model_config(root)), dtype="fp32", overrides=given)
    # torch's norm does what it must on part of a sequence; upstream refuses to build it, since it marks no weight.
    with mock.patch.object(WrappedTorchNorm, "__new__", _norm):
        model = config.get_builder_cls()(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    return model.to(device(), torch.float32)


def _norm(cls: type, config: object, hidden_size: int, eps: float = 1e-5, **unused: object) -> torch.nn.Module:
    return torch.nn.RMSNorm(hidden_size, eps)


def adapted(root: Path, peft: Values, sizes: Sizes) -> Any:
    """The model at `root` with its weights and fresh adapters."""
    wanted = create_peft(peft)
    assert wanted is not None
    hook = create_peft_hook(wanted, lambda model: load(model[0], root))
    [model] = hook([built(root, sizes)])
    return model


def logits_with_adapters(root: Path, peft: Values, tokens: list[list[int]], sizes: Sizes) -> dict[str, Any]:
    """Of the base, with fresh adapters, with others, and with those folded in; and whether the base came back."""
    given = torch.tensor(tokens, device=device())
    with megatron_here(), torch.no_grad():
        base = built(root, sizes).eval()
        load(base, root)
        fresh = adapted(root, peft, sizes).eval()
        moved = adapted(root, {**peft, "lora_B_init_method": "normal"}, sizes).eval()
        before = {name: value.clone() for name, value in moved.named_parameters()}
        answers = {name: forward(model, given) for name, model in (("base", base), ("fresh", fresh), ("moved", moved))}
        with merged_adapters([moved]):
            answers["merged"] = forward(moved, given)
        kept = all(torch.equal(value, before[name]) for name, value in moved.named_parameters())
    return {name: None if answer is None else answer.cpu().numpy() for name, answer in answers.items()} | {"kept": kept}


def trained(
    root: Path, target: Path, peft: Values, tokens: list[list[int]], sizes: Sizes, rate: float = 1.0
) -> tuple[set[str], set[str]]:
    """A forward, a backward and an optimizer's step; the adapter is saved. Parameters that changed, and the others."""
    with megatron_here():
        model = adapted(root, peft, sizes).train()
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        wrapped = DistributedDataParallel(model.config, create_ddp_config(), model)
        optimizer = get_megatron_optimizer(
            OptimizerConfig(optimizer="sgd", lr=rate, weight_decay=0.0, clip_grad=0.0, sgd_momentum=0.0), [wrapped]
        )
        finalize_model_config([wrapped], optimizer)
        answer = forward(model, torch.tensor(tokens, device=device()))
        loss = torch.nn.functional.cross_entropy(
            answer[:, :-1].flatten(0, 1), torch.tensor(tokens, device=device())[:, 1:].flatten()
        )
        loss.backward()
        finalize_model_grads([wrapped])
        optimizer.step()
        wanted = create_peft(peft)
        assert wanted is not None
        save_peft_adapter_checkpoint([wrapped], target, wanted)
    after = dict(model.named_parameters())
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    return changed, before.keys() - changed


def saved_fresh(root: Path, target: Path, peft: Values, sizes: Sizes) -> None:
    """Save an adapter as it is at first."""
    wanted = create_peft(peft)
    assert wanted is not None
    with megatron_here():
        save_peft_adapter_checkpoint([adapted(root, peft, sizes)], target, wanted)


def saved_again(root: Path, source: Path, target: Path, peft: Values, sizes: Sizes) -> None:
    """Load the adapter at `source` at these sizes, and save it."""
    wanted = create_peft(peft)
    assert wanted is not None
    with megatron_here():
        model = adapted(root, {**peft, "seed": 5}, sizes)
        load_peft_adapter_checkpoint([model], source, wanted)
        save_peft_adapter_checkpoint([model], target, wanted)


def saved_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, whole."""
    with megatron_here():
        found = dist_checkpointing.load_plain_tensors(str(path))
    return {name: value.cpu().numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}


def names(root: Path, peft: Values, sizes: Sizes) -> tuple[list[str], list[str]]:
    """Of the parameters of an adapted model, and its state dict's keys."""
    with megatron_here():
        model = adapted(root, peft, sizes)
    return [name for name, _ in model.named_parameters()], list(model.state_dict())
