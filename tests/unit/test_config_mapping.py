"""The direct way from an HF config to upstream's config object, and the provider view beside it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from megatron.core.activations import squared_relu
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
from torch.nn import functional
from transformers import LlamaConfig, Qwen3Config

import worker.mapping
from tests.families.case import cases_of
from worker.jobs.errors import BadInputError
from worker.mapping import (
    CONFIG_MAPPING,
    to_hf_config,
    to_megatron_model_config,
    to_megatron_provider_kwargs,
)
from worker.mapping.family import Family
from worker.mapping.model_config import from_json_dict, to_json_dict
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES

PROJECT = Path(__file__).parents[2]
LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.1,
    "bos_token_id": 128000,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.03,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_2 = {name: value for name, value in LLAMA_3.items() if name not in ("rope_scaling", "rope_theta", "head_dim")}

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def hf_config_of(family: Family) -> dict[str, Any]:
    """A whole config of the family, as its class writes it."""
    from transformers import AutoConfig

    case = cases_of(family)[0]
    return AutoConfig.for_model(case.model_type, **case.config).to_dict()


def test_llama_3_arrives_field_by_field() -> None:
    config = to_megatron_model_config(LLAMA_3)

    expected = {
        "num_layers": 16,
        "hidden_size": 2048,
        "ffn_hidden_size": 8192,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "kv_channels": 64,
        "vocab_size": 128256,
        "should_pad_vocab": True,
        "make_vocab_size_divisible_by": 128,
        "seq_length": 131072,
        "layernorm_epsilon": 1e-05,
        "init_method_std": 0.03,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.0,
        "share_embeddings_and_output_weights": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
        "activation_func": functional.silu,
        "gated_linear_unit": True,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "rotary_base": 500000,
        "rotary_percent": 1.0,
        "rope_scaling": True,
        "rope_scaling_factor": 32.0,
        "params_dtype": torch.bfloat16,
        "bf16": True,
        "fp16": False,
    }
    assert isinstance(config, GPTModelConfig)
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_defaults_that_trainers_rely_on_are_explicit() -> None:
    config = to_megatron_model_config(LLAMA_3)

    expected = {
        "attention_softmax_in_fp32": False,
        "cross_entropy_loss_fusion": True,
        "deallocate_pipeline_outputs": True,
        "bias_activation_fusion": True,
        "masked_softmax_fusion": True,
        "persist_layer_norm": True,
        "bias_dropout_fusion": True,
        "apply_rope_fusion": True,
    }
    assert {name: getattr(config, name) for name in expected} == expected


def test_llama_2_has_plain_rope_of_base_10000() -> None:
    config = to_megatron_model_config(LLAMA_2)

    assert (config.rotary_base, config.rope_scaling, config.kv_channels) == (10000, False, 64)
    assert config.position_embedding_type == "rope"
    assert config.seq_len_interpolation_factor is None


@pytest.mark.parametrize("spelling", [{"rope_theta": 12345.0}, {"rope_parameters": {"rope_theta": 12345.0}}])
def test_a_rotary_base_of_its_own_arrives_in_either_spelling(spelling: dict[str, Any]) -> None:
    assert to_megatron_model_config(LLAMA_2 | spelling).rotary_base == 12345


@pytest.mark.parametrize(
    ("option", "value"), [("low_freq_factor", 2.0), ("high_freq_factor", 8.0), ("original_max_position_embeddings", 1)]
)
def test_llama_3_scaling_that_megatron_fixes_otherwise_is_refused(option: str, value: float) -> None:
    scaling = LLAMA_3["rope_scaling"] | {option: value}

    with pytest.raises(BadInputError, match=option):
        to_megatron_model_config(LLAMA_3 | {"rope_scaling": scaling})


def test_a_file_a_folder_and_transformers_object_are_the_same_config(tmp_path: Path) -> None:
    LlamaConfig(**LLAMA_3).save_pretrained(tmp_path)
    expected = to_megatron_model_config(LLAMA_3)

    for form in (tmp_path, str(tmp_path), tmp_path / "config.json", LlamaConfig.from_pretrained(tmp_path)):
        found = to_megatron_model_config(form)
        found.extra_checkpoint_metadata = expected.extra_checkpoint_metadata
        assert to_json_dict(found) == to_json_dict(expected)


def test_source_and_revision_of_a_transformers_config_are_recorded() -> None:
    hf_config = Qwen3Config(name_or_path="Qwen/Qwen3-0.6B")  # pyright: ignore[reportCallIssue]
    hf_config._commit_hash = "c0ffee"

    extra = to_megatron_model_config(hf_config).extra_checkpoint_metadata

    assert extra is not None
    assert (extra["family"], extra["hf_source"], extra["hf_revision"]) == ("qwen3", "Qwen/Qwen3-0.6B", "c0ffee")


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_path_without_a_config_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)

    with pytest.raises(BadInputError, match=r"config\.json"):
        to_megatron_model_config(tmp_path)


@each_family
def test_the_way_back_is_the_config_that_it_was(family: Family) -> None:
    hf = hf_config_of(family)

    back = to_hf_config(from_json_dict(json.loads(json.dumps(to_json_dict(to_megatron_model_config(hf))))))

    assert back == dict(family.to_hf(family.to_mcore(Record(hf, "config.json"))).values)
    assert to_json_dict(to_megatron_model_config(back)) == to_json_dict(to_megatron_model_config(dict(hf)))


@each_family
def test_the_provider_view_and_the_config_agree_in_every_field(family: Family) -> None:
    hf = hf_config_of(family)
    config = to_megatron_model_config(hf)

    kwargs = to_megatron_provider_kwargs(hf)

    assert len(kwargs) > 30
    assert {name: getattr(config, name) for name in kwargs} == kwargs


def test_the_provider_view_holds_objects_as_providers_take_them() -> None:
    kwargs = to_megatron_provider_kwargs(LLAMA_3)

    assert kwargs["activation_func"] is functional.silu
    assert kwargs["params_dtype"] is torch.bfloat16
    assert squared_relu not in kwargs.values()


@each_family
def test_the_direct_way_does_without_the_provider_view(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> NoReturn:
        raise AssertionError("the provider view was used")

    hf = hf_config_of(family)
    expected = to_json_dict(to_megatron_model_config(hf))
    monkeypatch.setattr("worker.mapping.provider.to_megatron_provider_kwargs", broken)
    monkeypatch.setattr("worker.mapping.provider.decoded", broken)
    monkeypatch.setattr("worker.mapping.model_config.decoded", broken)

    config = to_megatron_model_config(hf)

    assert to_json_dict(config) == expected
    assert to_hf_config(config)


def test_mapping_a_config_finalizes_builds_and_distributes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> NoReturn:
        raise AssertionError("configuration only")

    monkeypatch.setattr(GPTModelConfig, "finalize", unwanted)
    monkeypatch.setattr(GPTModelBuilder, "build_model", unwanted)
    monkeypatch.setattr(torch.distributed, "init_process_group", unwanted)

    to_megatron_model_config(LLAMA_3)

    assert not torch.distributed.is_initialized()


def test_every_model_type_has_its_familys_table() -> None:
    assert {family.name: CONFIG_MAPPING[family.model_types[0]] for family in FAMILIES} == {
        family.name: family.fields for family in FAMILIES
    }


@pytest.mark.parametrize("name", worker.mapping.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(worker.mapping, name)


def test_an_unheard_of_name_is_no_part_of_the_room() -> None:
    with pytest.raises(AttributeError, match="to_megatron_provider"):
        worker.mapping.to_megatron_provider  # noqa: B018


def test_the_room_itself_loads_no_family() -> None:
    code = "import sys, worker.mapping; print([name for name in sys.modules if name.startswith('worker.mapping.')])"

    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PROJECT)

    assert loaded.strip() == "[]"
