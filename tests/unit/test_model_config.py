"""Upstream's config objects: built from values, through JSON and YAML and back, adapted to a host."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from megatron.core.activations import squared_relu
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
from torch.nn import functional

from worker.integration import for_this_host, load_model_config
from worker.jobs.errors import BadInputError
from worker.mapping.model_config import MegatronValues, build, from_json_dict, to_json_dict

VALUES = MegatronValues(
    model={
        "vocab_size": 257,
        "should_pad_vocab": True,
        "make_vocab_size_divisible_by": 1,
        "seq_length": 4096,
        "position_embedding_type": "yarn",
        "rotary_base": 500000,
        "share_embeddings_and_output_weights": True,
    },
    transformer={
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 64,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 24,
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-06,
        "gated_linear_unit": True,
        "activation_func": "silu",
        "params_dtype": "bfloat16",
        "bf16": True,
        "window_size": [127, 0],
        "attention_backend": "flash",
        "apply_rope_fusion": True,
        "persist_layer_norm": True,
        "bias_activation_fusion": True,
    },
    extra={
        "family": "llama",
        "hf_source": "a model",
        "undeclared": {"yarn_rotary_scaling_factor": 16.0, "yarn_correction_range_round_to_int": False},
    },
)


def through_json(data: dict[str, object]) -> dict[str, object]:
    """What a JSON file gives back."""
    return json.loads(json.dumps(data, allow_nan=False))


def through_yaml(data: dict[str, object]) -> dict[str, object]:
    """What a YAML file gives back."""
    return yaml.safe_load(yaml.safe_dump(data))


def with_transformer(**changes: object) -> MegatronValues:
    """`VALUES` with other transformer values."""
    return replace(VALUES, transformer={**VALUES.transformer, **changes})


def test_build_gives_upstreams_own_types() -> None:
    config = build(VALUES)

    transformer = config.transformer
    assert isinstance(config, GPTModelConfig)
    assert config.get_builder_cls() is GPTModelBuilder
    assert transformer.params_dtype is torch.bfloat16
    assert transformer.activation_func is functional.silu
    assert transformer.attention_backend is AttnBackend.flash
    assert transformer.window_size == (127, 0)


def test_build_keeps_fusions_whose_kernels_this_host_lacks() -> None:
    assert build(VALUES).transformer.apply_rope_fusion is True


def test_build_sets_the_undeclared_values_where_gpt_model_reads_them() -> None:
    config = build(VALUES)

    assert vars(config.transformer)["yarn_rotary_scaling_factor"] == 16.0
    assert vars(config.transformer)["yarn_correction_range_round_to_int"] is False
    assert config.extra_checkpoint_metadata == dict(VALUES.extra)


@pytest.mark.parametrize("through", [through_json, through_yaml])
def test_a_config_survives_a_file_exactly(through: Callable[[dict[str, object]], dict[str, object]]) -> None:
    config = build(VALUES)

    read = from_json_dict(through(to_json_dict(config)))

    assert read.as_dict() == config.as_dict()
    assert read.transformer.activation_func is config.transformer.activation_func
    assert to_json_dict(read) == to_json_dict(config)
    assert vars(read.transformer)["yarn_rotary_scaling_factor"] == 16.0


@pytest.mark.parametrize(
    "name", ["silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2", "sigmoid", "tanh"]
)
def test_every_activation_survives_a_file(name: str) -> None:
    config = build(with_transformer(activation_func=name, bias_activation_fusion=False))

    written = through_json(to_json_dict(config))

    assert written["transformer"]["activation_func"] == name  # pyright: ignore[reportIndexIssue]
    assert from_json_dict(written).transformer.activation_func is config.transformer.activation_func


def test_the_activations_are_upstreams_own_functions() -> None:
    config = build(with_transformer(activation_func="relu2", bias_activation_fusion=False))

    assert config.transformer.activation_func is squared_relu


@pytest.mark.parametrize(
    ("values", "thing"),
    [
        (with_transformer(num_layer=2), "num_layer'"),
        (replace(VALUES, model={**VALUES.model, "vocabsize": 2}), "vocabsize'"),
        (replace(VALUES, extra={"undeclared": {"yarn_rotary_factor": 2.0}}), "yarn_rotary_factor'"),
        (with_transformer(activation_func="swish2"), "swish2'"),
        (with_transformer(params_dtype="bfloat61"), "bfloat61'"),
        (with_transformer(params_dtype="nn"), "'nn'"),
        (with_transformer(attention_backend="flush"), "flush'"),
        (with_transformer(num_attention_heads=3, tensor_model_parallel_size=2), "num_attention_heads"),
    ],
)
def test_a_wrong_name_or_value_is_refused(values: MegatronValues, thing: str) -> None:
    with pytest.raises(BadInputError, match=thing):
        build(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("_target_",), "os.system"),
        (("_target_",), "megatron.training.models.gpt.GPTModelBuilder"),
        (("_builder_",), "os.system"),
        (("transformer", "_target_"), "subprocess.Popen"),
        (("transformer",), None),
    ],
)
def test_a_file_cannot_name_classes_of_its_own(path: tuple[str, ...], value: object) -> None:
    data: dict[str, Any] = through_json(to_json_dict(build(VALUES)))
    record = data
    for name in path[:-1]:
        record = record[name]
    record[path[-1]] = value

    with pytest.raises(BadInputError, match="Megatron config"):
        from_json_dict(data)


@pytest.mark.parametrize(
    ("name", "value"), [("transformer_layer_spec", ModuleSpec(module=torch.nn.Identity)), ("quant_recipe", object())]
)
def test_a_config_that_json_cannot_hold_is_refused(name: str, value: object) -> None:
    config = build(VALUES)
    setattr(config, name, value)

    with pytest.raises(BadInputError, match=name):
        to_json_dict(config)


def test_an_unnamed_activation_is_refused() -> None:
    config = build(VALUES)
    config.transformer.activation_func = lambda x: x

    with pytest.raises(BadInputError, match="activation_func"):
        to_json_dict(config)


def test_the_loader_takes_a_folder_a_file_or_its_content(tmp_path: Path) -> None:
    data = to_json_dict(build(VALUES))
    (tmp_path / "model_config.json").write_text(json.dumps(data))

    for source in (tmp_path, tmp_path / "model_config.json", data):
        assert to_json_dict(load_model_config(source)) == data


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_the_loader_says_which_file_is_wrong(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model_config.json").write_text(content)

    with pytest.raises(BadInputError, match=r"model_config\.json"):
        load_model_config(tmp_path)


def test_adapting_to_this_host_leaves_the_recorded_config_alone() -> None:
    config = build(VALUES)
    recorded = to_json_dict(config)

    adapted = for_this_host(config)

    assert to_json_dict(config) == recorded
    assert adapted.transformer.activation_func is functional.silu
    assert vars(adapted.transformer)["yarn_rotary_scaling_factor"] == 16.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="about hosts without CUDA")
def test_without_cuda_and_transformer_engine_their_parts_are_off() -> None:
    adapted = for_this_host(build(VALUES)).transformer

    assert adapted.transformer_impl == "local"
    assert adapted.use_cpu_initialization is True
    assert not adapted.apply_rope_fusion
    assert not adapted.persist_layer_norm
    assert not adapted.bias_activation_fusion
