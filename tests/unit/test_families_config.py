"""Config pages: every field accounted for, both ways, and nothing unknown passes."""

from typing import Any

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.bindings import Model, bindings
from worker.mapping.family import Family, megatron_values
from worker.mapping.plan import plan_export, plan_import
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES, family_of
from worker.mapping.upstream_classes import outer_fields

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 257,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
}
MISTRAL = {name: value for name, value in LLAMA.items() if "bias" not in name} | {
    "model_type": "mistral",
    "sliding_window": 32,
}
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 257,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "moe_intermediate_size": 48,
    "n_routed_experts": 16,
    "num_experts_per_tok": 8,
}
GLM4_MOE = DEEPSEEK_V3 | {"model_type": "glm4_moe", "num_key_value_heads": 4}
DEEPSEEK_V2 = DEEPSEEK_V3 | {"model_type": "deepseek_v2"}
NEMOTRON_H: dict[str, Any] = {
    "model_type": "nemotron_h",
    "vocab_size": 257,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "layers_block_type": ["linear_attention", "moe"],
    "num_experts_per_tok": 2,
}


class Info:
    """A tensor's header."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape


def model(**changes: object) -> Model:
    hf = Record({**LLAMA, **changes}, "config.json")
    family = family_of(hf)
    return Model(family=family, hf=hf, mcore=family.to_mcore(hf))


def hf_tensors(of: Model) -> dict[str, Info]:
    return {
        part.source.name: Info("BF16", (*part.stack, *part.shape)) for binding in bindings(of) for part in binding.parts
    }


def mcore_tensors(of: Model) -> dict[str, Info]:
    tasks = plan_import(of, hf_tensors(of)).tasks
    return {task.target.name: Info(task.dtype, (*task.stack, *task.shape)) for task in tasks}


@pytest.mark.parametrize("config", [LLAMA, MISTRAL], ids=["llama", "mistral"])
def test_config_to_megatron_and_back_loses_nothing_that_matters(config: dict[str, Any]) -> None:
    hf = Record(config, "config.json")
    family = family_of(hf)
    values = family.to_mcore(hf)

    back = family.to_hf(values)

    assert family.to_mcore(back).values == values.values
    renamed = {"torch_dtype": "dtype", "rope_theta": "rope_parameters"}
    assert {renamed.get(name, name) for name in config} <= set(back.values)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_two_codecs_of_a_family_write_one_megatron_field(family: Family) -> None:
    written = [name for codec in family.fields for name in codec.mcore]

    assert len(written) == len(set(written))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_hf_field_is_both_mapped_and_ignored(family: Family) -> None:
    mapped = {name for codec in family.fields for name in codec.hf}

    assert mapped.isdisjoint(row.hf_name for row in family.ignored)
    assert all(row.why for row in family.ignored)


def test_an_unknown_field_is_named_with_its_value_and_page() -> None:
    with pytest.raises(BadInputError) as refused:
        model(surprise=3)

    info = refused.value.info
    assert info.code == "unknown_config_field"
    assert "'surprise'" in info.thing
    assert info.found == "3"
    assert "families/llama.py" in info.next_step


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", "64"),
        ("hidden_size", 0),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", "small"),
        ("tie_word_embeddings", 1),
        ("hidden_act", "gelu_new"),
        ("torch_dtype", "float8_e4m3fn"),
        ("rope_interleaved", True),
        ("model_type", "unheard_of"),
    ],
)
def test_a_value_that_cannot_be_mapped_is_named(field: str, value: object) -> None:
    with pytest.raises(BadInputError, match=field):
        model(**{field: value})


def test_quantized_tensors_are_refused_though_their_config_maps() -> None:
    quantized = model(quantization_config={"quant_method": "fp8"})

    with pytest.raises(BadInputError, match="quantized by 'fp8'"):
        plan_import(quantized, hf_tensors(quantized))


def test_an_absent_field_takes_hfs_own_default() -> None:
    absent = {"rms_norm_eps", "num_key_value_heads", "head_dim", "attention_bias", "rope_theta", "torch_dtype"}
    hf = Record({name: value for name, value in LLAMA.items() if name not in absent}, "config.json")

    values = family_of(hf).to_mcore(hf)

    expected = {
        "layernorm_epsilon": 1e-6,
        "num_query_groups": 8,
        "kv_channels": 8,
        "add_qkv_bias": False,
        "rotary_base": 10000,
        "params_dtype": "float32",
    }
    assert {name: values.get(name) for name in expected} == expected


def mapped(config: dict[str, Any], **changes: object) -> Record:
    """Megatron's values."""
    hf = Record({**config, **changes}, "config.json")
    return family_of(hf).to_mcore(hf)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (DEEPSEEK_V3, "rope_interleave"),
        (DEEPSEEK_V3, "norm_topk_prob"),
        (DEEPSEEK_V3, "n_group"),
        (DEEPSEEK_V3, "topk_group"),
        (DEEPSEEK_V3, "head_dim"),
        (DEEPSEEK_V3, "rms_norm_eps"),
        (DEEPSEEK_V2, "norm_topk_prob"),
        (DEEPSEEK_V2, "topk_method"),
        (GLM4_MOE, "norm_topk_prob"),
        (GLM4_MOE, "partial_rotary_factor"),
        (NEMOTRON_H, "norm_topk_prob"),
        (NEMOTRON_H, "use_conv_bias"),
        (LLAMA, "attention_bias"),
        (LLAMA, "tie_word_embeddings"),
    ],
)
def test_an_explicit_null_is_no_absent_field_and_is_refused_by_name(config: dict[str, Any], field: str) -> None:
    assert mapped({name: value for name, value in config.items() if name != field})

    with pytest.raises(BadInputError, match=f"field '{field}': found null"):
        mapped(config, **{field: None})


@pytest.mark.parametrize(
    ("config", "field", "mcore", "value"),
    [
        (LLAMA, "head_dim", "kv_channels", 8),
        (LLAMA, "num_key_value_heads", "num_query_groups", 8),
        (LLAMA, "rope_scaling", "rope_scaling", False),
        (MISTRAL, "sliding_window", "window_size", None),
        (DEEPSEEK_V3, "q_lora_rank", "q_lora_rank", None),
        (NEMOTRON_H, "moe_latent_size", "moe_latent_size", None),
    ],
)
def test_an_explicit_null_that_hfs_class_reads_keeps_its_meaning(
    config: dict[str, Any], field: str, mcore: str, value: object
) -> None:
    assert mapped(config, **{field: None}).get(mcore) == value


@pytest.mark.parametrize("option", ["truncate", "original_max_position_embeddings"])
def test_an_explicit_null_in_yarn_that_is_not_its_default_is_refused_by_name(option: str) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": None}
    assert mapped(LLAMA, rope_scaling=yarn)

    with pytest.raises(BadInputError, match=option):
        mapped(LLAMA, rope_scaling=yarn | {option: None})


def test_an_explicit_null_window_is_none_though_it_is_switched_on() -> None:
    qwen = {name: value for name, value in LLAMA.items() if "bias" not in name} | {"model_type": "qwen2"}
    switched = {"use_sliding_window": True, "max_window_layers": 0}

    assert mapped(qwen, **switched).get("window_size") == [4095, 0]
    assert mapped(qwen, **switched, sliding_window=None).get("window_size") is None


@pytest.mark.parametrize(
    ("config", "changes", "groups"),
    [
        (DEEPSEEK_V3, {}, (8, 4)),
        (DEEPSEEK_V3, {"n_group": 4}, (None, None)),
        (DEEPSEEK_V3, {"topk_group": 2}, (8, 2)),
        (DEEPSEEK_V3, {"n_group": 1, "topk_group": 1}, (None, None)),
        (GLM4_MOE, {}, (None, None)),
        (GLM4_MOE, {"n_group": 4}, (4, 1)),
        (NEMOTRON_H, {}, (None, None)),
        (NEMOTRON_H, {"n_group": 4}, (4, 1)),
        (DEEPSEEK_V2, {}, (None, None)),
        (DEEPSEEK_V2, {"n_group": None, "topk_group": None}, (None, None)),
        (DEEPSEEK_V2, {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}, (4, 2)),
    ],
)
def test_absent_expert_groups_are_those_of_hfs_class(
    config: dict[str, Any], changes: dict[str, object], groups: tuple[int | None, int | None]
) -> None:
    values = mapped(config, **changes)

    assert (values.get("moe_router_num_groups"), values.get("moe_router_group_topk")) == groups


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (DEEPSEEK_V3, {"n_group": 1}, "topk_group"),
        (GLM4_MOE, {"topk_group": 2}, "topk_group"),
        (DEEPSEEK_V2, {"topk_method": "group_limited_greedy"}, "n_group"),
        (DEEPSEEK_V2, {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": None}, "topk_group"),
    ],
)
def test_expert_groups_that_hfs_class_fails_on_are_refused_by_name(
    config: dict[str, Any], changes: dict[str, object], named: str
) -> None:
    with pytest.raises(BadInputError, match=f"field '{named}'"):
        mapped(config, **changes)


@pytest.mark.parametrize(
    ("model_type", "of_class"),
    [("deepseek_v3", (8, 4)), ("glm4_moe", (1, 1)), ("nemotron_h", (1, 1)), ("deepseek_v2", (None, None))],
)
def test_hfs_class_has_these_expert_groups_by_default(model_type: str, of_class: tuple[int | None, int | None]) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type)

    assert (config.n_group, config.topk_group) == of_class


def test_mistrals_window_counts_the_token_itself() -> None:
    hf = Record(MISTRAL, "config.json")

    assert family_of(hf).to_mcore(hf).get("window_size") == [31, 0]


def test_outer_and_transformer_fields_are_told_apart() -> None:
    of = model()

    values = megatron_values(of.family, of.mcore, "somewhere")

    assert set(values.model) <= outer_fields("gpt", Record({}, "values"))
    assert values.transformer["num_layers"] == 2
    assert values.extra["hf_source"] == "somewhere"


def test_every_hf_tensor_is_claimed_once_and_read_back_once() -> None:
    of = model(tie_word_embeddings=False)

    plan = plan_export(of, mcore_tensors(of))

    assert [str(task.target) for task in plan.tasks][:2] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
    ]
    assert {str(task.target) for task in plan.tasks} == set(hf_tensors(of))
    assert str(plan.tasks[-1].target) == "lm_head.weight"


@pytest.mark.parametrize(
    ("attention", "mlp", "filled"),
    [
        (True, True, set[str]()),
        (False, False, set[str]()),
        (True, False, {"decoder.layers.mlp.linear_fc1.bias", "decoder.layers.mlp.linear_fc2.bias"}),
        (
            False,
            True,
            {"decoder.layers.self_attention.linear_qkv.bias", "decoder.layers.self_attention.linear_proj.bias"},
        ),
    ],
)
def test_biases_that_hf_lacks_are_filled_and_must_be_zero_on_the_way_back(
    attention: bool, mlp: bool, filled: set[str]
) -> None:
    of = model(attention_bias=attention, mlp_bias=mlp)

    there = plan_import(of, hf_tensors(of))
    back = plan_export(of, mcore_tensors(of))

    assert {left.name for left in there.filled} == filled
    assert {block.source.name for block in back.must_be_zero} == filled


def test_an_unknown_tensor_is_named() -> None:
    of = model()

    with pytest.raises(BadInputError, match=r"model\.layers\.0\.surprise") as refused:
        plan_import(of, hf_tensors(of) | {"model.layers.0.surprise": Info("BF16", (1,))})

    assert refused.value.info.code == "unknown_tensor"


def test_tensors_without_use_are_dropped_with_a_reason() -> None:
    of = model()
    extra = {
        "lm_head.weight": Info("BF16", (257, 64)),
        "model.layers.1.self_attn.rotary_emb.inv_freq": Info("F32", (8,)),
    }

    plan = plan_import(of, hf_tensors(of) | extra)

    assert {left.name for left in plan.dropped} == set(extra)
    assert all(left.why for left in plan.dropped)


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (None, "missing_tensor"),
        (Info("BF16", (64, 64)), "bad_tensor"),
        (Info("F8_E4M3", (128, 64)), "bad_tensor"),
        (Info("F32", (128, 64)), "bad_tensor"),
    ],
    ids=["missing", "misshapen", "quantized", "another dtype than the layer before"],
)
def test_a_tensor_that_does_not_fit_is_refused(info: Info | None, code: str) -> None:
    of = model()
    tensors = hf_tensors(of)
    name = "model.layers.1.self_attn.q_proj.weight"
    if info is None:
        del tensors[name]
    else:
        tensors[name] = info

    with pytest.raises(BadInputError, match=r"layers\.1\.self_attn\.q_proj") as refused:
        plan_import(of, tensors)

    assert refused.value.info.code == code


def test_a_padded_vocabulary_is_cut_back() -> None:
    of = model()
    tensors = mcore_tensors(of) | {"embedding.word_embeddings.weight": Info("BF16", (384, 64))}

    plan = plan_export(of, tensors)

    assert plan.tasks[0].shape == (257, 64)
    assert plan.tasks[0].blocks[0].rows == 257


def test_a_vocabulary_smaller_than_the_configs_is_refused() -> None:
    of = model()

    with pytest.raises(BadInputError, match="word_embeddings"):
        plan_export(of, mcore_tensors(of) | {"embedding.word_embeddings.weight": Info("BF16", (256, 64))})


def test_a_trainers_own_state_is_left_behind() -> None:
    of = model()
    state = {"optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight": Info("F32", (2, 192, 64))}

    plan = plan_export(of, mcore_tensors(of) | state)

    assert {left.name for left in plan.dropped} == set(state)


def test_a_megatron_tensor_without_a_rule_is_refused() -> None:
    of = model()

    with pytest.raises(BadInputError, match=r"decoder\.surprise"):
        plan_export(of, mcore_tensors(of) | {"decoder.surprise": Info("BF16", (1,))})
