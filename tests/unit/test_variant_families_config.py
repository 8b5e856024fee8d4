"""What Gemma, OLMoE and MiniMax-M2 pages refuse, by name, rather than map to something close."""

from typing import Any

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.record import Record
from worker.mapping.registry import family_of

SHAPE: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def mapped(model_type: str, **changes: object) -> Record:
    """Megatron's values of a small config."""
    config = Record({"model_type": model_type, **SHAPE, **changes}, "config.json")
    return family_of(config).to_mcore(config)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("gemma", "hidden_act", "relu"),
        ("gemma", "use_bidirectional_attention", True),
        ("gemma2", "hidden_activation", "gelu"),
        ("gemma3_text", "rope_scaling", YARN),
        ("gemma3_text", "rope_parameters", {FULL: {"rope_type": "default"}, SLIDING: LINEAR}),
        ("gemma3_text", "rope_parameters", {"rope_type": "default", "rope_theta": 10.0}),
        ("gemma3_text", "layer_types", [FULL, FULL, "chunked_attention", FULL]),
        ("olmoe", "clip_qkv", 8.0),
        ("olmoe", "head_dim", 16),
        ("olmoe", "attention_bias", True),
        ("minimax_m2", "attn_type_list", [1, 0, 1, 1]),
        ("minimax_m2", "scoring_func", "softmax"),
        ("minimax_m2", "num_experts_per_tok", 1),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(model_type: str, field: str, value: object) -> None:
    with pytest.raises(BadInputError, match="rope" if "rope" in field else field):
        mapped(model_type, **{field: value})


def test_gemma_3_with_a_vision_tower_is_refused_with_the_next_step() -> None:
    with pytest.raises(BadInputError, match=r"gemma3.*Gemma3ForCausalLM \(gemma3_text\)"):
        mapped("gemma3")


def test_an_attention_scale_that_hf_cannot_say_is_refused_on_export() -> None:
    values = mapped("gemma2")
    trained = Record({**values.values, "softmax_scale": 0.3}, values.origin)

    with pytest.raises(BadInputError, match="softmax_scale"):
        family_of(Record({"model_type": "gemma2"}, "config.json")).to_hf(trained)


@pytest.mark.parametrize("scalar", [1, 24, 144, 168, 224, 256, 1023])
def test_every_attention_scale_comes_back(scalar: int) -> None:
    values = mapped("gemma2", query_pre_attn_scalar=scalar)

    back = family_of(Record({"model_type": "gemma2"}, "config.json")).to_hf(values)

    assert back.get("query_pre_attn_scalar") == scalar


def test_an_explicit_null_softcap_is_none_and_an_absent_one_hfs_default() -> None:
    assert mapped("gemma2").get("final_logit_softcap") == 30.0
    assert mapped("gemma2", final_logit_softcapping=None).get("final_logit_softcap") is None
    assert mapped("gemma3_text").get("final_logit_softcap") is None


def test_rotated_channels_of_minimax_are_a_part_of_a_head() -> None:
    assert mapped("minimax_m2", head_dim=128, rotary_dim=64).get("rotary_percent") == 0.5
    assert mapped("minimax_m2", head_dim=128, rotary_dim=64, partial_rotary_factor=0.25).get("rotary_percent") == 0.25
