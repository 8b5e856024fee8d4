"""Our variants of Megatron's model compute what HF's classes do; weights are copied by hand, past the mapping."""

from typing import Any

import numpy as np
import pytest

from tests.families.test_logits import TOLERANCE, difference
from tests.megatron.ranks import RankError, Ranks

SHAPE: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
GEMMA: dict[str, Any] = {"layernorm_zero_centered_gamma": True}
SCALE = {"embedding_scale": 48**0.5}
EXPERTS = {
    "num_moe_experts": 6,
    "moe_router_topk": 3,
    "moe_ffn_hidden_size": 48,
    "moe_token_dispatcher_type": "allgather",
}
SLIDING, FULL = "sliding_attention", "full_attention"

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma": ({"model_type": "gemma", "head_dim": 16}, GEMMA, SCALE),
    "gemma2": (
        {
            "model_type": "gemma2",
            "head_dim": 16,
            "sliding_window": 13,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 0.7,
            "final_logit_softcapping": 2.0,
        },
        GEMMA | {"window_size": (12, 0), "window_attn_skip_freq": [1, 0, 1, 0], "softmax_scale": 24**-0.5},
        SCALE | {"attention_logit_softcap": 0.7, "final_logit_softcap": 2.0, "sandwich_norms": True},
    ),
    "gemma3": (
        {
            "model_type": "gemma3_text",
            "head_dim": 16,
            "sliding_window": 13,
            "query_pre_attn_scalar": 24,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        GEMMA
        | {"window_size": (12, 0), "window_attn_skip_freq": [1, 1, 0, 1], "softmax_scale": 24**-0.5}
        | {"qk_layernorm": True},
        SCALE
        | {
            "sandwich_norms": True,
            "local_rotary_base": 100.0,
            "rotary_base": 1000,
            "seq_len_interpolation_factor": 4.0,
        },
    ),
    "olmoe": (
        {"model_type": "olmoe", "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False},
        EXPERTS | {"moe_router_pre_softmax": True},
        {"qk_norm_width": "full"},
    ),
    "minimax_m2": (
        {
            "model_type": "minimax_m2",
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        },
        EXPERTS | {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True},
        {"qk_norm_width": "full", "rotary_base": 100, "rotary_percent": 0.5},
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_addition = pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, (_, _, outer) in MODELS.items() for field in outer]
)


def arguments(name: str) -> dict[str, Any]:
    """HF's and Megatron's config of one model; Gemma's activation is named, since a function cannot be sent."""
    hf, transformer, outer = MODELS[name]
    return {"hf": SHAPE | hf, "transformer": transformer, "outer": outer}


@every_model
def test_local_layers_give_hfs_logits(megatron: Ranks, name: str) -> None:
    [(ours, reference)] = megatron.run("tests.megatron.variants:both_logits", **arguments(name), impl="local")

    assert difference(ours, reference) < TOLERANCE


@every_model
def test_transformer_engine_layers_give_hfs_logits(megatron_with_transformer_engine: Ranks, name: str) -> None:
    [(ours, reference)] = megatron_with_transformer_engine.run(
        "tests.megatron.variants:both_logits", **arguments(name), impl="transformer_engine"
    )

    assert difference(ours, reference) < TOLERANCE


@every_addition
def test_every_addition_shows_in_the_logits(megatron: Ranks, name: str, field: str) -> None:
    given = arguments(name)
    outer = {other: value for other, value in given["outer"].items() if other != field}

    [(ours, reference)] = megatron.run("tests.megatron.variants:both_logits", **given | {"outer": outer}, impl="local")

    assert difference(ours, reference) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "recompute",
    [
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    ],
    ids=["full", "selective"],
)
@every_model
def test_recomputing_gives_the_same_gradients(megatron: Ranks, name: str, recompute: dict[str, Any]) -> None:
    [plain] = megatron.run("tests.megatron.variants:gradients", **arguments(name), recompute={})
    [recomputed] = megatron.run("tests.megatron.variants:gradients", **arguments(name), recompute=recompute)

    assert plain.keys() == recomputed.keys()
    assert all(np.array_equal(plain[parameter], recomputed[parameter]) for parameter in plain)
    assert all(plain[parameter].any() for parameter in plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_norms_on_two_ranks_with_a_cut_sequence_have_the_gradients_of_one(
    megatron: Ranks, two_ranks: Ranks, name: str
) -> None:
    given = arguments(name)
    given["hf"] |= {"vocab_size": 256}  # no padding, which would be drawn otherwise on two ranks
    [reference] = megatron.run("tests.megatron.variants:gradients_of_norms", **given, tp_size=1)

    answers = two_ranks.run("tests.megatron.variants:gradients_of_norms", **given, tp_size=2)

    for ours in answers:
        assert all(difference(ours[norm], reference[norm]) < TOLERANCE for norm in reference)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [2, 4])
def test_a_norm_of_heads_on_two_ranks_is_one_norm(two_ranks: Ranks, heads: int) -> None:
    answers = two_ranks.run("tests.megatron.variants:norm_of_cut_heads", heads=heads)

    assert answers == [[True, True, True]] * 2


@pytest.mark.parametrize(
    ("name", "transformer", "outer", "field"),
    [
        ("olmoe", {"qk_layernorm": True}, {}, "qk_layernorm"),
        ("olmoe", {}, {"sandwich_norms": True}, "num_moe_experts"),
        ("gemma3", {}, {"position_embedding_type": "none"}, "position_embedding_type"),
        ("gemma2", {"apply_query_key_layer_scaling": True}, {}, "apply_query_key_layer_scaling"),
    ],
)
def test_a_contradiction_is_refused_by_name(
    megatron: Ranks, name: str, transformer: dict[str, Any], outer: dict[str, Any], field: str
) -> None:
    given = arguments(name)
    given |= {"transformer": given["transformer"] | transformer, "outer": given["outer"] | outer}

    with pytest.raises(RankError, match=f"field '{field}'"):
        megatron.run("tests.megatron.variants:both_logits", **given, impl="local")
