"""Which family Megatron's values are of, where nobody wrote it down: a table of tests, and a proof."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..jobs.errors import BadInputError, FerryError
from .families.deepseek_v2 import DEEPSEEK_V2
from .families.deepseek_v3 import DEEPSEEK_V3
from .families.glm4_moe import GLM4_MOE
from .families.llama import LLAMA
from .families.mistral import MISTRAL
from .families.mixtral import MIXTRAL
from .families.nemotron import NEMOTRON
from .families.qwen2 import QWEN2
from .families.qwen3 import QWEN3
from .families.qwen3_moe import QWEN3_MOE
from .family import Family
from .record import Record
from .upstream_classes import VARIANT_FIELDS

_NEUTRAL: Mapping[str, object] = {
    "normalization": "LayerNorm",
    "gated_linear_unit": False,
    "activation_func": "gelu",
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "qk_l2_norm": False,
    "multi_latent_attention": False,
    "num_moe_experts": None,
    "window_size": None,
    "window_attn_skip_freq": None,
    "position_embedding_type": "learned_absolute",
    "rotary_interleaved": False,
    "rotary_percent": 1.0,
    "no_rope_freq": None,
    "layernorm_zero_centered_gamma": False,
    "softmax_type": "vanilla",
    "softmax_scale": None,
    "attention_output_gate": False,
    "apply_residual_connection_post_layernorm": False,
    "experimental_attention_variant": None,
    "activation_func_clamp_value": None,
    "glu_linear_offset": 0.0,
    "mtp_num_layers": None,
    "hybrid_layer_pattern": None,
    "is_hybrid_model": False,
    "heterogeneous_block_specs": False,
    "heterogeneous_layers_config_path": None,
    "use_mup": False,
    "spec": None,
    "mrope_section": None,
    "linear_attention_freq": None,
    "rope_scaling": False,
    "seq_len_interpolation_factor": None,
    **dict.fromkeys(VARIANT_FIELDS),
}
"""Values that change the forward pass, and what stands for their absence."""

_NEUTRAL_OF_EXPERTS: Mapping[str, object] = {
    "moe_layer_freq": 1,
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_enable_expert_bias": False,
    "moe_router_num_groups": None,
    "moe_router_group_topk": None,
    "moe_router_topk_scaling_factor": None,
    "moe_shared_expert_intermediate_size": None,
    "moe_shared_expert_gate": False,
    "moe_apply_probs_on_input": False,
    "moe_latent_size": None,
    "moe_mlp_glu_interleave_size": None,
    "moe_shared_expert_glu_interleave_size": None,
    "moe_router_topk_limited_devices": None,
}
"""The same, of models with experts; others have them without meaning."""

_NEUTRAL_OF_LATENTS: Mapping[str, object] = {"rotary_scaling_factor": 1.0}
"""The same, of latent attention, which scales its softmax by this even where rope is not yarn's."""

_NEEDED = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "seq_length",
    "layernorm_epsilon",
    "share_embeddings_and_output_weights",
)
"""Values for which a family's HF class would take its own default, which need not be Megatron's."""

_DENSE: Mapping[str, object] = {"num_moe_experts": None, "multi_latent_attention": False, "activation_func": "silu"}
_QK_NORMS: Mapping[str, object] = {"qk_layernorm": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tell:
    """A family is told by values that it has, and values that must be anything but absent."""

    family: Family
    has: Mapping[str, object]
    some: frozenset[str] = field(default=frozenset())


_TELLS = (
    # A Mistral without window is a Llama in all but name.
    _Tell(family=LLAMA, has={**_DENSE, "qk_layernorm": False, "add_qkv_bias": False, "window_size": None}),
    _Tell(family=LLAMA, has={**_DENSE, "qk_layernorm": False, "add_bias_linear": True, "window_size": None}),
    _Tell(
        family=MISTRAL, has={**_DENSE, "qk_layernorm": False, "add_qkv_bias": False}, some=frozenset({"window_size"})
    ),
    _Tell(family=QWEN2, has={**_DENSE, "qk_layernorm": False, "add_bias_linear": False, "add_qkv_bias": True}),
    _Tell(family=QWEN3, has={**_DENSE, **_QK_NORMS}),
    _Tell(family=NEMOTRON, has={**_DENSE, "activation_func": "relu2", "layernorm_zero_centered_gamma": True}),
    _Tell(
        family=MIXTRAL,
        has={"multi_latent_attention": False, "qk_layernorm": False, "moe_router_score_function": "softmax"},
        some=frozenset({"num_moe_experts"}),
    ),
    _Tell(
        family=QWEN3_MOE,
        has={"multi_latent_attention": False, **_QK_NORMS, "moe_router_score_function": "softmax"},
        some=frozenset({"num_moe_experts"}),
    ),
    _Tell(
        family=GLM4_MOE,
        has={"multi_latent_attention": False, "moe_router_score_function": "sigmoid"},
        some=frozenset({"num_moe_experts"}),
    ),
    _Tell(
        family=DEEPSEEK_V3,
        has={"multi_latent_attention": True, "moe_router_score_function": "sigmoid"},
        some=frozenset({"num_moe_experts"}),
    ),
    _Tell(
        family=DEEPSEEK_V2,
        has={"multi_latent_attention": True, "moe_router_score_function": "softmax"},
        some=frozenset({"num_moe_experts"}),
    ),
)


def guess_family(values: Record) -> Family:
    """The one family whose tests hold, and whose config says everything that the values say.

    BadInputError where there is none or more than one; it names `--hf-config`.
    """
    missing = [name for name in _NEEDED if values.get(name) is None]
    if missing:
        raise _undecided(values, f"no value of {', '.join(missing)}", "every size of the model")
    told = {tell.family.name: tell.family for tell in _TELLS if _holds(tell, values)}
    if len(told) != 1:
        names = " or ".join(told) or "a model that no family's tests fit"
        raise _undecided(values, names, "the values of exactly one family")
    [family] = told.values()
    lost = _lost(family, values)
    if lost:
        raise _undecided(values, f"{family.name}, but for {', '.join(lost)}", f"values that {family.name} can have")
    return family


def _holds(tell: _Tell, values: Record) -> bool:
    has = all(_value(values, name) == value for name, value in tell.has.items())
    return has and all(_value(values, name) is not None for name in tell.some)


def _value(values: Record, name: str) -> object:
    value = values.get(name)
    return {**_NEUTRAL, **_NEUTRAL_OF_EXPERTS, **_NEUTRAL_OF_LATENTS}[name] if value is None else value


def _lost(family: Family, values: Record) -> list[str]:
    """What the family's HF config, read back, does not say as the values do."""
    try:
        again = family.to_mcore(family.to_hf(values))
    except FerryError as error:
        raise _undecided(values, f"{family.name}, but {error}", "values that its HF config can say") from error
    of_experts = _NEUTRAL_OF_EXPERTS if values.get("num_moe_experts") else ()
    of_latents = _NEUTRAL_OF_LATENTS if values.get("multi_latent_attention") else ()
    return [
        f"{name} {_value(values, name)!r}"
        for name in (*_NEUTRAL, *of_experts, *of_latents)
        if _value(values, name) != _value(again, name)
    ]


def _undecided(values: Record, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "unknown_family",
        f"the family of {values.origin}",
        found=found,
        expected=expected,
        next_step="Give the HF config: `ferry export ... --hf-config DIR`.",
    )
