"""What Megatron's own layers and optimizer lack on a host without Transformer Engine and Apex, and a run needs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_layer import TransformerLayer


@contextmanager
def local_layers(flash: bool) -> Iterator[None]:
    """Megatron's local layers can be built with sequence parallelism; with `flash`, attention is torch's fused one."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(WrappedTorchNorm, "__new__", _norm))
        stack.enter_context(mock.patch.object(DistributedOptimizer, "sharded_state_dict", _state_to_load_into))
        if flash:
            stack.enter_context(mock.patch.object(DotProductAttention, "forward", _fused_attention))
        yield


def name_expert_norms(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """A pre-wrap hook: upstream's local layers call the norm before experts as that of a dense MLP in a checkpoint.

    With Transformer Engine it is a module of its own there, and has the name that checkpoints have.
    """
    for chunk in chunks:
        for layer in chunk.modules():
            if isinstance(layer, TransformerLayer) and isinstance(layer.mlp, MoELayer):
                known: Any = layer.submodules_config
                names = dict(known.sharded_state_dict_keys_map)
                names.pop("pre_mlp_layernorm.", None)
                layer.submodules_config = replace(known, sharded_state_dict_keys_map=names)
    return chunks


def _norm(
    cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **unused: object
) -> torch.nn.RMSNorm | torch.nn.LayerNorm:
    """torch's norm does what it must on part of a sequence; upstream refuses, since it does not mark the weight."""
    kind = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
    norm = kind(hidden_size, eps)
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]  # read when gradients are reduced
    return norm


_sharded_state_dict = DistributedOptimizer.sharded_state_dict


def _state_to_load_into(
    self: Any, model_sharded_state_dict: Any, is_loading: bool = False, *given: Any, **named: Any
) -> Any:
    """torch's Adam has no state before its first step; upstream (0.19.2) asks it for its step count all the same."""
    if is_loading and not self.optimizer.state:
        self._init_optimizer_states_with_dummy_values()
    return _sharded_state_dict(self, model_sharded_state_dict, is_loading, *given, **named)


def _fused_attention(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> torch.Tensor:
    """[length, batch, heads, width] each -> [length, batch, heads * width]. Causal, without dropout."""
    assert not self.attention_dropout.p or not self.training
    q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
    answer = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=self.softmax_scale, enable_gqa=True
    )
    return answer.permute(2, 0, 1, 3).flatten(2)
