"""Attention that Megatron-Core lacks: norms over all heads, a second rope base, softcapped scores."""

# Megatron-Core leaves half of its functions without types, and torch some: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from typing import Any, override

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from .softcap import softcapped
from .variant_norms import AllHeadsRMSNorm


class VariantSelfAttention(SelfAttention):
    """Upstream's, with `all_heads_norms` on queries and keys, `rotary_bases` to choose from, or `softcapped` scores."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        pg_collection: ProcessGroupCollection,
        all_heads_norms: bool,
        rotary_bases: bool,
        softcapped: bool,
        **options: Any,
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection, **options)
        self.rotary_bases, self.softcapped = rotary_bases, softcapped
        if all_heads_norms:
            self.q_layernorm = AllHeadsRMSNorm(config, config.num_attention_heads, pg_collection.tp)
            self.k_layernorm = AllHeadsRMSNorm(config, config.num_query_groups or 0, pg_collection.tp)

    @override
    def forward(
        self, hidden_states: torch.Tensor, *args: Any, rotary_pos_emb: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """With two bases, `rotary_pos_emb` is [full layers' and windowed layers', ...], of which one is taken."""
        if self.rotary_bases and rotary_pos_emb is not None:
            rotary_pos_emb = rotary_pos_emb[int(_has_window(self.config, self.layer_number))]
        return super().forward(hidden_states, *args, rotary_pos_emb=rotary_pos_emb, **options)

    @override
    def flash_decode_and_prefill(self, *args: Any, **options: Any) -> torch.Tensor:
        """Upstream's inference with dynamic batches goes past the core attention, and so past its softcap."""
        if self.softcapped:
            raise NotImplementedError("softcapped attention in dynamic batches: generate with static batching")
        return super().flash_decode_and_prefill(*args, **options)


class SoftcappedAttention(DotProductAttention):
    """Upstream's plain attention, with `cap * tanh(scores / cap)` before mask and softmax.

    Transformer Engine's kernels know no softcap, so its models have this one too: without packed sequences or context
    parallelism, which upstream's plain attention refuses by name.
    """

    def __init__(self, *, cap: float, **options: Any) -> None:
        super().__init__(**options)
        self.scale_mask_softmax = _SoftcappedSoftmax(self.scale_mask_softmax, cap)


class _SoftcappedSoftmax(torch.nn.Module):
    """The softmax of capped scores, in fp32 as in HF."""

    def __init__(self, softmax: Any, cap: float) -> None:
        super().__init__()
        self.softmax, self.cap = softmax, cap
        softmax.softmax_in_fp32 = True
        # The fused kernel masks the future alone: it would lose the window.
        softmax.scaled_masked_softmax_fusion = False

    @override
    def forward(self, scores: torch.Tensor, mask: torch.Tensor | None, offset: torch.Tensor | None) -> torch.Tensor:
        return self.softmax(softcapped(scores, self.cap), mask, offset)


def _has_window(config: TransformerConfig, layer_number: int) -> bool:
    every: Any = config.window_attn_skip_freq  # which upstream annotates without its None
    return is_layer_window_attention(config.window_size, every, layer_number)
