"""Adapters put beside a model's layers, folded into them for a while, and told apart from the rest."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import nn

from .adapted import (
    Adapted,
    AdaptedDirection,
    AdaptedFused,
    AdaptedLinear,
    AdaptedRouter,
    Magnitude,
    Parts,
    adapted_modules,
)
from .base_linear import BaseLinear, describe, kind_of
from .chunks import stage_of
from .expert_low_rank import ExpertLowRank
from .low_rank import LowRank
from .peft import Peft

_SAVED = "saved_with_adapter"
_PIECES = {"linear_qkv": ("adapter_q", "adapter_k", "adapter_v"), "linear_fc1": ("adapter_gate", "adapter_up")}


def add_adapters(
    model: Sequence[nn.Module],
    peft: Peft,
    *,
    training: bool = True,
    pg_collection: ProcessGroupCollection | None = None,
) -> list[nn.Module]:
    """The same model chunks, their own parameters frozen and adapters beside the layers that `peft` names.

    At the start an adapter adds nothing (B is 0), whatever the parallelism. ValueError on a layer that cannot have the
    adapter, with what can.
    """
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    for chunk in model:
        chunk.requires_grad_(False)
        stage = stage_of(chunk)
        named = [(path, _global_name(stage, path, groups), module) for path, module in stage.named_modules()]
        for path, name, module in named:
            parts = peft.parts_of(name)
            if parts is not None and kind_of(module) is not None:
                parent, _, last = path.rpartition(".")
                setattr(
                    stage.get_submodule(parent), last, _adapted(module, describe(module, name, groups), peft, parts)
                )
        _let_recomputation_reach_adapters(stage)
        chunk.train(training)
    return list(model)


def mark_saved_parameters(model: Sequence[nn.Module]) -> None:
    """Remember what trains now: it belongs to an adapter's checkpoint, a value head or the like included."""
    for chunk in model:
        for parameter in chunk.parameters():
            setattr(parameter, _SAVED, parameter.requires_grad)


def is_adapter_key(key: str) -> bool:
    """The checkpoint key is of an adapter's weight; their modules have no other state."""
    return ".adapter." in f".{key}" and not key.endswith("_extra_state")


def saved_keys(chunk: nn.Module) -> frozenset[str]:
    """The state-dict keys of what `mark_saved_parameters` marked in a chunk."""
    named = stage_of(chunk).named_parameters()
    return frozenset(name.replace(".to_wrap.", ".") for name, value in named if getattr(value, _SAVED, False))


@contextmanager
def merged_adapters(model: Sequence[nn.Module]) -> Generator[None]:
    """Inside, every base weight is W with its adapter folded in, rounded once; adapters add nothing of their own.

    Afterwards the base is bit for bit what it was: a copy of each folded weight waits in host memory. All ranks take
    part.
    """
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    wrappers = [wrapper for chunk in model for wrapper in adapted_modules(chunk)]
    try:
        for wrapper in wrappers:
            for weight, merged in wrapper.merged_weights():
                kept.append((weight, weight.detach().to("cpu", copy=True)))
                weight.data.copy_(merged)
            wrapper.enabled = False
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)
        for wrapper in wrappers:
            wrapper.enabled = True


def _adapted(module: nn.Module, base: BaseLinear, peft: Peft, parts: tuple[str, ...]) -> Adapted:
    config: Any = module.config
    rank = peft.rank_of(base.is_expert, config.moe_router_topk)
    last = base.name.rpartition(".")[2]
    gated = last == "linear_fc1" and config.gated_linear_unit
    like = next(module.parameters())
    if last == "router":
        return AdaptedRouter(module, LowRank(base, peft, rank, like))
    if peft.type == "dora":
        if base.experts or base.gathers_output:
            raise _unsupported(base, "dora", "dense layers and experts that are modules of their own")
        return AdaptedDirection(module, Magnitude(base, peft, rank, like, gated=gated))
    if base.experts:  # fused also in canonical LoRA, as upstream has it
        return AdaptedLinear(module, ExpertLowRank(base, peft, rank, like, gated=gated))
    if parts == ("",):
        return AdaptedLinear(module, LowRank(base, peft, rank, like, gated=gated))
    return _fused(module, base, peft, parts, rank)


def _fused(module: nn.Module, base: BaseLinear, peft: Peft, parts: tuple[str, ...], rank: int) -> AdaptedFused:
    rows, groups = _part_rows(module, base)
    like = next(module.parameters())
    made = Parts()
    for part in (part for part in rows if part in parts):
        described = replace(base, name=f"{base.name} {part}", out_features=rows[part])
        made[part] = LowRank(described, peft, rank, like)
    return AdaptedFused(module, made, {part: base.share(size, part) for part, size in rows.items()}, groups)


def _part_rows(module: nn.Module, base: BaseLinear) -> tuple[dict[str, int], int]:
    """All ranks' rows of each part in order, and how often the parts alternate on this rank."""
    config: Any = module.config
    names = _PIECES[base.name.rpartition(".")[2]]
    if len(names) == 2:
        if not config.gated_linear_unit:
            raise _unsupported(base, "canonical_lora", "an MLP with a gate, or the type lora")
        return dict.fromkeys(names, base.out_features // 2), 1
    kv_rows = config.num_query_groups * config.kv_channels
    rows = dict(zip(names, (config.num_attention_heads * config.kv_channels, kv_rows, kv_rows), strict=True))
    if sum(rows.values()) != base.out_features or config.num_query_groups % base.ranks:
        raise _unsupported(base, "canonical_lora", "rows of q, k and v alone in whole groups, or the type lora")
    return rows, config.num_query_groups // base.ranks


def _unsupported(base: BaseLinear, peft_type: str, supported: str) -> ValueError:
    return ValueError(
        f"adapter of {base.name}: found type {peft_type} with {base.out_features} outputs on {base.ranks} ranks, "
        f"{base.experts} grouped experts; expected {supported}. Exclude the layer or choose another type."
    )


def _global_name(chunk: nn.Module, path: str, groups: ProcessGroupCollection) -> str:
    """The path with the model's own numbers of layers and experts, whichever rank holds them."""
    pieces = path.split(".")
    for place, piece in enumerate(pieces):
        holder: Any = chunk.get_submodule(".".join(path.split(".")[: place + 1]))
        if piece.isdigit() and pieces[place - 1] == "layers" and hasattr(holder, "layer_number"):
            pieces[place] = str(holder.layer_number - 1)
        elif piece == "local_experts":
            first = groups.ep.rank() * len(holder)
            pieces[place + 1 : place + 2] = [str(first + int(number)) for number in pieces[place + 1 : place + 2]]
    return ".".join(pieces)


def _let_recomputation_reach_adapters(chunk: Any) -> None:
    """Full recomputation passes gradients only where its input asks for them, which frozen embeddings do not."""
    if chunk.config.recompute_granularity == "full" and hasattr(chunk, "embedding"):
        chunk.embedding.register_forward_hook(_ask_for_gradient)


def _ask_for_gradient(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_()
