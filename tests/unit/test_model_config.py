"""Upstream's config objects: built from values, through JSON and YAML and back, adapted to a host."""

import json
import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from megatron.core.activations import squared_relu
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig
from megatron.training.models.hybrid import HybridModelConfig
from torch.nn import functional

from worker.integration import for_this_host, load, load_model_config
from worker.integration.variants import VariantGPTModelConfig
from worker.jobs.errors import BadInputError
from worker.mapping.model_config import MegatronValues, build, from_json_dict, to_json_dict

VALUES = MegatronValues(
    kind="gpt",
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


LATENT = MegatronValues(
    kind="gpt",
    model={"vocab_size": 257, "position_embedding_type": "rope"},
    transformer={
        "multi_latent_attention": True,
        "num_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "activation_func": "silu",
        "rotary_base": 50000,
        "rotary_scaling_factor": 32.0,
        "num_moe_experts": 4,
        "moe_layer_freq": [0, 1, 1],
        "moe_router_topk_scaling_factor": 2.827,
        "window_attn_skip_freq": [1, 0, 1],
    },
    extra={"family": "deepseek_v3", "hf_source": "hub:org/model@abc", "undeclared": {}},
)
HYBRID = MegatronValues(
    kind="hybrid",
    model={"vocab_size": 257, "hybrid_layer_pattern": "M*-E", "position_embedding_type": "none"},
    transformer={
        "num_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "activation_func": "relu2",
        "mamba_state_dim": 16,
        "num_moe_experts": 4,
    },
    extra={"family": "nemotron_h", "hf_source": "a model", "undeclared": {}},
)
VARIANT = replace(VALUES, kind="variant", model={**VALUES.model, "embedding_scale": 8.0, "qk_norm_width": "full"})
KINDS = pytest.mark.parametrize(
    "values", [VALUES, LATENT, HYBRID, VARIANT], ids=["gpt", "latent attention", "hybrid", "variant"]
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
    assert config.extra_checkpoint_metadata is not None
    assert config.extra_checkpoint_metadata.items() >= VALUES.extra.items()


@KINDS
def test_each_kind_is_its_own_class_around_its_own_transformer_config(values: MegatronValues) -> None:
    config = build(values)

    latent = bool(values.transformer.get("multi_latent_attention"))
    outer = {"gpt": GPTModelConfig, "hybrid": HybridModelConfig, "variant": VariantGPTModelConfig}[values.kind]
    assert isinstance(config, outer)
    assert type(config).__name__ == outer.__name__
    assert isinstance(config.transformer, MLATransformerConfig if latent else TransformerConfig)
    assert config.get_builder_cls().__name__ == outer.__name__.removesuffix("Config") + "Builder"


@KINDS
def test_every_value_arrives_where_it_belongs(values: MegatronValues) -> None:
    written = through_json(to_json_dict(build(values)))

    transformer: Any = written["transformer"]
    assert {name: written[name] for name in values.model} == values.model
    assert {name: transformer[name] for name in values.transformer} == values.transformer


@KINDS
@pytest.mark.parametrize("name", ["num_layer", "rotaty_base", "vocab", "yarn_beta"])
def test_a_name_that_no_class_declares_cannot_be_set(values: MegatronValues, name: str) -> None:
    config = build(values)

    for owner in (config, config.transformer, deepcopy(config), pickle.loads(pickle.dumps(config))):
        with pytest.raises(AttributeError, match=f"no field '{name}'"):
            setattr(owner, name, 1)


def test_the_error_for_an_undeclared_name_says_what_may_have_been_meant() -> None:
    with pytest.raises(AttributeError, match="did you mean 'num_layers'"):
        build(VALUES).num_layer = 3


@KINDS
def test_a_declared_name_can_be_set_flat_and_reaches_its_owner(values: MegatronValues) -> None:
    config = build(values)

    config.tensor_model_parallel_size = 2
    config.vocab_size = 300
    config.rotary_base = 77

    assert config.transformer.tensor_model_parallel_size == 2
    assert (config.vocab_size, config.rotary_base) == (300, 77)
    assert getattr(config.transformer, "rotary_base", 77) == 77


@KINDS
@pytest.mark.parametrize("twin", [deepcopy, copy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_config_can_be_copied_and_pickled(values: MegatronValues, twin: Callable[[Any], Any]) -> None:
    config = build(values)

    assert to_json_dict(twin(config)) == to_json_dict(config)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:org/model@abc", ("org/model", "abc")),
        ("hub:org/model", ("org/model", None)),
        (f"/cache/models--org--model/snapshots/{'0a' * 20}", ("org/model", "0a" * 20)),
        (f"/cache/models--gpt2/snapshots/{'0a' * 20}/config.json", ("gpt2", "0a" * 20)),
        ("/models/llama", ("/models/llama", None)),
    ],
)
def test_the_source_and_its_revision_are_recorded(source: str, expected: tuple[str, str | None]) -> None:
    extra = build(replace(VALUES, extra={**VALUES.extra, "hf_source": source})).extra_checkpoint_metadata

    assert extra is not None
    assert (extra["hf_source"], extra["hf_revision"]) == expected


@KINDS
def test_our_own_classes_are_written_under_the_name_that_trainers_import(values: MegatronValues) -> None:
    written = to_json_dict(build(values))

    ours = values.kind == "variant"
    for name in ("_target_", "_builder_"):
        assert str(written[name]).startswith("mcore_ferry.integration.variants." if ours else "megatron.training.")


@KINDS
@pytest.mark.parametrize("through", [through_json, through_yaml])
def test_a_config_survives_a_file_exactly(
    values: MegatronValues, through: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    config = build(values)

    read = from_json_dict(through(to_json_dict(config)))

    assert read.as_dict() == config.as_dict()
    assert read.transformer.activation_func is config.transformer.activation_func
    assert to_json_dict(read) == to_json_dict(config)
    for name, value in values.extra["undeclared"].items():  # pyright: ignore[reportAttributeAccessIssue]
        assert vars(read.transformer)[name] == value


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


def test_without_fusions_a_host_with_every_kernel_builds_the_same_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_SWITCHES", tuple(replace(one, available=lambda: True) for one in load._SWITCHES))

    plain = for_this_host(build(VALUES), fused=False).transformer
    fused = for_this_host(build(VALUES)).transformer

    assert fused.bias_activation_fusion
    assert not plain.bias_activation_fusion
    assert not plain.apply_rope_fusion
    assert plain.transformer_impl == fused.transformer_impl
    assert plain.moe_grouped_gemm == fused.moe_grouped_gemm


@pytest.mark.skipif(torch.cuda.is_available(), reason="about hosts without CUDA")
def test_without_cuda_and_transformer_engine_their_parts_are_off() -> None:
    adapted = for_this_host(build(VALUES)).transformer

    assert adapted.transformer_impl == "local"
    assert adapted.use_cpu_initialization is True
    assert not adapted.apply_rope_fusion
    assert not adapted.persist_layer_norm
    assert not adapted.bias_activation_fusion
