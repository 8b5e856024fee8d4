"""The arguments of Megatron's training program as the values that families read.

Source: `core_transformer_config_from_args` and `model_provider` of megatron-core 0.19; older names beside newer ones.
"""

from collections.abc import Mapping

from .checkpoint_values import completed
from .record import Record

_RENAMED = {
    "layernorm_epsilon": ("layernorm_epsilon", "norm_epsilon"),
    "layernorm_zero_centered_gamma": ("layernorm_zero_centered_gamma", "apply_layernorm_1p"),
    "num_moe_experts": ("num_experts",),
    "seq_length": ("max_position_embeddings", "seq_length"),
    "seq_len_interpolation_factor": ("rotary_seq_len_interpolation_factor",),
    "rope_scaling": ("use_rope_scaling",),
    "hybrid_layer_pattern": ("hybrid_layer_pattern", "hybrid_override_pattern"),
}
"""Ours, and the arguments' names for it, newest first."""


def has_model(args: Mapping[str, object]) -> bool:
    """Whether the arguments describe a model: a run whose model was built otherwise leaves these empty."""
    return args.get("num_layers") is not None and args.get("hidden_size") is not None


def values_of_args(args: Mapping[str, object], origin: str) -> Record:
    """Megatron's values, as a written config has them; a name without value is absent."""
    renamed = {ours: _first(args, theirs) for ours, theirs in _RENAMED.items()}
    values = {**args, **renamed, **_activation(args), **_attention(args), **_embeddings(args)}
    return completed(values, origin)


def _first(args: Mapping[str, object], names: tuple[str, ...]) -> object:
    return next((args[name] for name in names if args.get(name) is not None), None)


def _activation(args: Mapping[str, object]) -> dict[str, object]:
    """Flags, each of which stands for a function and for whether it has a gate."""
    if args.get("swiglu"):
        return {"activation_func": "silu", "gated_linear_unit": True}
    if args.get("quick_geglu"):
        return {"activation_func": "quick_gelu", "gated_linear_unit": True}
    if args.get("squared_relu"):
        return {"activation_func": "relu2", "gated_linear_unit": False}
    return {"activation_func": "gelu", "gated_linear_unit": False}


def _attention(args: Mapping[str, object]) -> dict[str, object]:
    every = args["add_bias_linear"] if "add_bias_linear" in args else not args.get("disable_bias_linear", False)
    grouped = args.get("group_query_attention")
    return {
        "num_query_groups": args.get("num_query_groups" if grouped else "num_attention_heads"),
        "add_bias_linear": every,
        **(_latents(args) if args.get("multi_latent_attention") else {}),
    }


def _latents(args: Mapping[str, object]) -> dict[str, object]:
    """What the program leaves to `MLATransformerConfig` where it has no argument for it."""
    own = {"rope_type": "yarn", "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
    return {name: value if args.get(name) is None else args[name] for name, value in own.items()}


def _embeddings(args: Mapping[str, object]) -> dict[str, object]:
    kind = "rope" if args.get("use_rotary_position_embeddings") else args.get("position_embedding_type")
    return {
        "share_embeddings_and_output_weights": not args.get("untie_embeddings_and_output_weights", False),
        "position_embedding_type": kind,
    }
