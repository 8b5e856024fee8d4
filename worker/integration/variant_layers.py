"""The layer spec of our variants: upstream's own, with other modules where it lacks what the config asks for."""

# Megatron-Core leaves half of its functions without types, and torch some: that is not ours to report.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from .variant_attention import SoftcappedAttention, VariantSelfAttention
from .variant_norms import ZeroCenteredRMSNorm, followed_by_norm

if TYPE_CHECKING:
    from .variants import VariantGPTModelConfig


def changes_layers(config: "VariantGPTModelConfig") -> bool:
    """Some layer of this model differs from upstream's."""
    return (
        config.sandwich_norms
        or config.attention_logit_softcap is not None
        or config.local_rotary_base is not None
        or config.qk_norm_width == "full"
        or _zero_centered_without_transformer_engine(config)
    )


def variant_layers(config: "VariantGPTModelConfig", vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The decoder layers of one pipeline stage, and the norm after them."""
    transformer = config.transformer
    upstream = get_gpt_decoder_block_spec(
        transformer,
        use_transformer_engine=transformer.transformer_impl == "transformer_engine",
        normalization=transformer.normalization,
        qk_l2_norm=transformer.qk_l2_norm,
        vp_stage=vp_stage,
    )
    norm = ZeroCenteredRMSNorm if _zero_centered_without_transformer_engine(config) else upstream.layer_norm
    layers = [_layer(spec, config, norm) for spec in upstream.layer_specs or ()]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)


def _layer(spec: ModuleSpec, config: "VariantGPTModelConfig", norm: Any) -> ModuleSpec:
    parts: Any = spec.submodules
    changes: dict[str, Any] = {"self_attention": _attention(parts.self_attention, config, norm)}
    if config.sandwich_norms:
        changes["mlp"] = _mlp(parts.mlp, norm)
    if norm is ZeroCenteredRMSNorm:
        changes |= {"input_layernorm": norm, "pre_mlp_layernorm": norm}
    return replace(spec, submodules=replace(parts, **changes))


def _attention(spec: ModuleSpec, config: "VariantGPTModelConfig", norm: Any) -> ModuleSpec:
    parts: Any = spec.submodules
    changes: dict[str, Any] = {}
    if config.attention_logit_softcap is not None:
        changes["core_attention"] = partial(SoftcappedAttention, cap=config.attention_logit_softcap)
    if config.sandwich_norms:
        changes["linear_proj"] = followed_by_norm(parts.linear_proj, norm)
    if norm is ZeroCenteredRMSNorm and config.transformer.qk_layernorm:
        changes |= {"q_layernorm": norm, "k_layernorm": norm}
    ours = {
        "all_heads_norms": config.qk_norm_width == "full",
        "rotary_bases": config.local_rotary_base is not None,
        "softcapped": config.attention_logit_softcap is not None,
    }
    return ModuleSpec(module=VariantSelfAttention, params={**spec.params, **ours}, submodules=replace(parts, **changes))


def _mlp(build: Any, norm: Any) -> Any:
    """Upstream's builder of a dense MLP: a partial function that is given its submodules."""
    parts = build.keywords["submodules"]
    normed = replace(parts, linear_fc2=followed_by_norm(parts.linear_fc2, norm))
    return partial(build.func, *build.args, **{**build.keywords, "submodules": normed})


def _zero_centered_without_transformer_engine(config: "VariantGPTModelConfig") -> bool:
    """Upstream's local norms know no zero-centred weight."""
    transformer = config.transformer
    return transformer.layernorm_zero_centered_gamma and transformer.transformer_impl == "local"
