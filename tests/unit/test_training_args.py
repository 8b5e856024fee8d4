"""Arguments of older and newer training programs come to the same values."""

import pytest

from worker.mapping.training_args import has_model, values_of_args


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        ({"norm_epsilon": 1e-6}, "layernorm_epsilon", 1e-6),
        ({"layernorm_epsilon": 1e-6}, "layernorm_epsilon", 1e-6),
        ({"disable_bias_linear": True}, "add_bias_linear", False),
        ({"add_bias_linear": True}, "add_qkv_bias", True),
        ({"add_bias_linear": False, "add_qkv_bias": True}, "add_qkv_bias", True),
        (
            {"use_rotary_position_embeddings": True, "position_embedding_type": "none"},
            "position_embedding_type",
            "rope",
        ),
        ({"group_query_attention": True, "num_query_groups": 2, "num_attention_heads": 8}, "num_query_groups", 2),
        ({"group_query_attention": False, "num_query_groups": 1, "num_attention_heads": 8}, "num_query_groups", 8),
        ({"untie_embeddings_and_output_weights": True}, "share_embeddings_and_output_weights", False),
        ({"swiglu": True}, "activation_func", "silu"),
        ({"squared_relu": True}, "activation_func", "relu2"),
        ({"quick_geglu": True}, "gated_linear_unit", True),
        ({}, "gated_linear_unit", False),
        ({"num_experts": 4, "ffn_hidden_size": 8}, "moe_ffn_hidden_size", 8),
        ({"num_experts": 4, "ffn_hidden_size": 8, "moe_ffn_hidden_size": 2}, "moe_ffn_hidden_size", 2),
        ({"max_position_embeddings": 128, "seq_length": 64}, "seq_length", 128),
        ({"multi_latent_attention": True, "rope_type": None}, "rope_type", "yarn"),
        ({"multi_latent_attention": True, "rope_type": "rope"}, "rope_type", "rope"),
        ({"hybrid_override_pattern": "M*-"}, "hybrid_layer_pattern", "M*-"),
    ],
    ids=str,
)
def test_each_spelling_is_read(args: dict[str, object], name: str, value: object) -> None:
    assert values_of_args(args, "args").get(name) == value


def test_args_without_sizes_describe_no_model() -> None:
    assert not has_model({"num_layers": None, "hidden_size": None})
    assert not has_model({})
