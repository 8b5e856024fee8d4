"""A model config made ready for its builder, and what training asks of it once the model exists."""

# Megatron-Core leaves half of its functions without types: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.utils import get_model_config

from .chunks import chunks_of
from .dtypes import dtype_of

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.training.models.gpt import GPTModelConfig

_SIZES: tuple[tuple[str, Callable[[], int | None]], ...] = (
    ("tensor_model_parallel_size", parallel_state.get_tensor_model_parallel_world_size),
    ("pipeline_model_parallel_size", parallel_state.get_pipeline_model_parallel_world_size),
    ("virtual_pipeline_model_parallel_size", parallel_state.get_virtual_pipeline_model_parallel_world_size),
    ("context_parallel_size", parallel_state.get_context_parallel_world_size),
    ("expert_model_parallel_size", parallel_state.get_expert_model_parallel_world_size),
    ("expert_tensor_parallel_size", parallel_state.get_expert_tensor_parallel_world_size),
)


def configure(
    config: "GPTModelConfig",
    *,
    dtype: torch.dtype | str | None = None,
    overrides: Mapping[str, object] | None = None,
    pre_finalize_hooks: Iterable[Callable[["GPTModelConfig"], object]] = (),
) -> "GPTModelConfig":
    """A finalized copy of `config`, ready for its builder. `config` stays as it is.

    In this order: `dtype` sets `params_dtype`, `fp16`, `bf16` and, with several stages, `pipeline_dtype`; the sizes of
    an initialised `parallel_state` are taken over; `overrides` win over both, each name a field of the outer or of the
    transformer config; hooks see the result; `finalize()` validates it. ValueError on an unsupported dtype,
    AttributeError on an unknown name. After Megatron-Bridge's `apply_overrides_and_finalize` (PR 3813).
    """
    ready = deepcopy(config)
    if parallel_state.model_parallel_is_initialized():
        for name, size in _SIZES:
            setattr(ready.transformer, name, size())
    if dtype is not None:
        _set_dtype(ready.transformer, dtype_of(dtype))
    for name, value in (overrides or {}).items():
        _override(ready, name, value)
    for hook in pre_finalize_hooks:
        hook(ready)
    ready.finalize()
    return ready


def finalize_model_config(
    model: Sequence[torch.nn.Module] | torch.nn.Module, optimizer: Any = None, *, align_grad_reduce: bool = True
) -> None:
    """Give the built model's config what Megatron's schedules call during training; `model` are its wrapped chunks.

    The optimizer's loss scale; for DDP chunks with overlap the functions that start and withhold communication; and
    `finalize_model_grads`, unless the trainer has set its own. ValueError where a `no_sync_func` was set that overlap
    would replace. As `megatron.training.training.train` does (0.19).
    """
    chunks = chunks_of(model)
    config: Any = get_model_config(chunks[0])
    config.grad_scale_func = None if optimizer is None else optimizer.scale_loss
    if isinstance(chunks[0], DistributedDataParallel):
        _set_overlap(config, chunks, align_grad_reduce)
    if config.finalize_model_grads_func is None:
        config.finalize_model_grads_func = finalize_model_grads


def _set_dtype(transformer: "TransformerConfig", dtype: torch.dtype) -> None:
    transformer.params_dtype = dtype
    transformer.bf16, transformer.fp16 = dtype is torch.bfloat16, dtype is torch.float16
    if transformer.pipeline_model_parallel_size > 1:
        transformer.pipeline_dtype = dtype


def _override(config: "GPTModelConfig", name: str, value: object) -> None:
    """Set it where it is declared; where both classes declare it, in both."""
    holders = [holder for holder in (config, config.transformer) if name in {field.name for field in fields(holder)}]
    if not holders:
        raise AttributeError(
            f"override {name!r}: found in neither {type(config).__name__} nor {type(config.transformer).__name__}, "
            "expected a field of one of them. Check the spelling against megatron-core."
        )
    for holder in holders:
        setattr(holder, name, value)


def _set_overlap(config: Any, chunks: Sequence[Any], align_grad_reduce: bool) -> None:
    ddp = chunks[0].ddp_config
    if ddp.overlap_grad_reduce:
        if config.no_sync_func is not None:
            raise ValueError("no_sync_func: found one already set, expected none with overlap_grad_reduce. Remove it.")
        config.no_sync_func = _one_or_all([chunk.no_sync for chunk in chunks])
        if align_grad_reduce:
            config.grad_sync_func = _one_or_all([chunk.start_grad_sync for chunk in chunks])
    if ddp.overlap_param_gather and ddp.align_param_gather:
        config.param_sync_func = _one_or_all([chunk.start_param_sync for chunk in chunks])


def _one_or_all[T](of_chunks: list[T]) -> T | list[T]:
    """Upstream's schedules take one function for one chunk, a list for several."""
    return of_chunks[0] if len(of_chunks) == 1 else of_chunks
