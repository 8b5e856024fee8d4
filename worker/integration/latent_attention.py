"""What Megatron-Core's latent attention lacks: norms with an epsilon of their own, queries without a norm."""

from typing import Any

from megatron.core.models.backends import get_backend
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch import nn

_NORMED = ("linear_q_up_proj", "linear_kv_up_proj")
"""Transformer Engine's layers that hold a norm; they read `eps` in every forward pass."""
_NORMS = ("q_layernorm", "kv_layernorm")
"""The norms themselves, where a layer spec keeps them apart."""


def set_latent_norm_epsilon(model: nn.Module, epsilon: float) -> None:
    """Set it on the norms of all latents."""
    for attention in latent_attentions(model):
        for name in (*_NORMED, *_NORMS):
            module: Any = getattr(attention, name, None)
            if hasattr(module, "eps"):
                module.eps = epsilon


def unnorm_queries(model: nn.Module) -> None:
    """Project queries from the hidden state as it is.

    Without a query rank, Megatron-Core 0.19 puts a second norm before the projection where its layers can fuse one
    (`QKNormConfigResolver`); no published model has it.
    """
    for attention in latent_attentions(model):
        config = attention.config
        attention.linear_q_proj = get_backend(config.transformer_impl).column_parallel_linear()(
            config.hidden_size,
            config.num_attention_heads * attention.q_head_dim,
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=False,
            is_expert=False,
            tp_comm_buffer_name="q_proj",
            tp_group=attention.pg_collection.tp,
        )


def latent_attentions(model: nn.Module) -> list[Any]:
    """Every latent attention of a stage, MTP's included."""
    return [module for module in model.modules() if isinstance(module, MLASelfAttention)]
