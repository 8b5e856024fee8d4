"""A checkpoint's config is found beside it or in it; descriptions that contradict each other are refused."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_verify import do
from tests.llama_folder import write_llama
from worker.jobs.errors import BadInputError
from worker.jobs.spec import ExportSpec, ImportSpec

ARGS: dict[str, object] = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 256,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 16,
    "vocab_size": 1000,
    "padded_vocab_size": 1024,
    "max_position_embeddings": 128,
    "seq_length": 64,
    "norm_epsilon": 1e-5,
    "normalization": "RMSNorm",
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "untie_embeddings_and_output_weights": True,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "qk_layernorm": False,
    "num_experts": None,
    "params_dtype": torch.float32,
    "init_method_std": 0.02,
    "attention_dropout": 0.0,
}

RUN_CONFIG = """
_target_: megatron.bridge.training.config.ConfigContainer
checkpoint:
  _target_: megatron.bridge.training.config.CheckpointConfig
  exit_signal:
    _args_: [15]
    _call_: true
    _target_: signal.Signals
model:
  _target_: megatron.bridge.models.llama.llama_provider.Llama31ModelProvider
  activation_func:
    _call_: false
    _target_: torch.nn.functional.silu
  add_bias_linear: false
  add_qkv_bias: false
  attention_dropout: 0.0
  ffn_hidden_size: 256
  gated_linear_unit: true
  hidden_size: 64
  high_freq_factor: 4.0
  init_method:
    _args_: []
    _partial_: true
    _target_: torch.nn.init.normal_
    mean: 0.0
    std: 0.02
  init_method_std: 0.02
  kv_channels: 16
  layernorm_epsilon: 1.0e-05
  low_freq_factor: 1.0
  normalization: RMSNorm
  num_attention_heads: 4
  num_layers: 2
  num_moe_experts: null
  num_query_groups: 2
  old_context_len: 8192
  params_dtype:
    _call_: false
    _target_: torch.float32
  position_embedding_type: rope
  qk_layernorm: false
  rotary_base: 10000.0
  rotary_percent: 1.0
  scale_factor: 32.0
  seq_length: 128
  share_embeddings_and_output_weights: false
  transformer_layer_spec:
    _call_: false
    _target_: megatron.bridge.models.gpt_provider.default_layer_spec
  vocab_size: 1000
  window_size: null
"""

Make = Callable[[], Path]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    """A folder with `hf` and its import `mcore`."""
    folder = tmp_path_factory.mktemp("described")
    write_llama(folder / "hf", layers=2, hidden=64)
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore")), warm_model_configs)
    return folder


@pytest.fixture
def bare(imported: Path, tmp_path: Path) -> Path:
    """The import without anything that describes it."""
    shutil.copytree(imported / "mcore", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "hf")
    (tmp_path / "bare" / "model_config.json").unlink()
    return tmp_path / "bare"


def save_args(root: Path, **changes: object) -> None:
    """A `common.pt`, as Megatron-Core wrote it before 0.19, some of an optimizer's tensors in it."""
    optimizer = {"param_groups": [{"lr": 0.1, "step": torch.tensor(3.0)}]}
    common = {"args": Namespace(**{**ARGS, **changes}), "iteration": 10, "optimizer": optimizer}
    torch.save(common, root / "release" / "common.pt")


def save_run_config(root: Path, text: str = RUN_CONFIG) -> None:
    (root / "release" / "run_config.yaml").write_text(text)


def export(socket: Path, root: Path, hf_config: Path | None = None) -> Path:
    target = root.parent / "exported"
    spec = ExportSpec(source=str(root), target=str(target), hf_config=str(hf_config) if hf_config else None)
    do(spec, socket)
    return target


def refused(socket: Path, root: Path, hf_config: Path | None = None) -> str:
    with pytest.raises(BadInputError) as caught:
        export(socket, root, hf_config)
    assert not (root.parent / "exported").exists()
    return caught.value.info.message


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())


def test_the_args_of_a_run_are_a_config(imported: Path, bare: Path, warm_model_configs: Path) -> None:
    save_args(bare)

    target = export(warm_model_configs, bare)

    config, source = config_of(target), config_of(imported / "hf")
    assert same_tensors(target, imported / "hf")
    assert config["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert {**config, **{name: source[name] for name in config.keys() & source.keys()}} == config


def test_the_run_config_of_a_bridge_is_a_config(imported: Path, bare: Path, warm_model_configs: Path) -> None:
    save_run_config(bare)

    target = export(warm_model_configs, bare)

    assert same_tensors(target, imported / "hf")
    assert config_of(target)["model_type"] == "llama"
    assert config_of(target)["rope_parameters"] == {
        "rope_theta": 10000.0,
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 8192,
    }


def test_a_run_config_comes_before_args(bare: Path, warm_model_configs: Path) -> None:
    save_run_config(bare)
    save_args(bare)

    target = export(warm_model_configs, bare)

    assert "llama3" in str(config_of(target)["rope_parameters"])


def test_values_around_a_transformer_config_are_read_too(bare: Path, warm_model_configs: Path) -> None:
    text = RUN_CONFIG.replace(
        "\nmodel:\n", "\nmodel:\n  transformer:\n    _target_: x.TransformerConfig\n    num_layers: 2\n"
    )
    save_run_config(bare, text.replace("\n  num_layers: 2", ""))

    assert export(warm_model_configs, bare).exists()


@pytest.mark.parametrize("describe", [save_args, save_run_config], ids=["args", "run_config"])
def test_a_given_config_must_agree(
    imported: Path, bare: Path, warm_model_configs: Path, describe: Callable[[Path], None], tmp_path: Path
) -> None:
    describe(bare)
    config = config_of(imported / "hf") | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))

    message = refused(warm_model_configs, bare, tmp_path / "config.json")

    assert "num_layers 3" in message
    assert "num_layers 2 in" in message


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 16},
        {"hidden_size": 32},
        {"num_attention_heads": 8},
        {"num_query_groups": 4},
        {"group_query_attention": False},
        {"ffn_hidden_size": 128},
        {"vocab_size": 1001},
        {"padded_vocab_size": 512},
        {"num_experts": 8},
        {"rotary_interleaved": True},
        {"moe_mlp_glu_interleave_size": 32},
    ],
    ids=str,
)
def test_args_that_contradict_what_lies_beside_are_refused(
    imported: Path, tmp_path: Path, warm_model_configs: Path, change: dict[str, object]
) -> None:
    root = shutil.copytree(imported / "mcore", tmp_path / "mcore")
    save_args(root, **change)

    assert "in the args saved in" in refused(warm_model_configs, root)


def test_a_vocabulary_that_hf_pads_itself_is_no_contradiction(
    imported: Path, tmp_path: Path, warm_model_configs: Path
) -> None:
    root = shutil.copytree(imported / "mcore", tmp_path / "mcore")
    save_args(root, vocab_size=999)

    assert same_tensors(export(warm_model_configs, root), imported / "hf")


def test_args_of_a_run_that_built_its_model_otherwise_say_nothing(
    imported: Path, tmp_path: Path, warm_model_configs: Path
) -> None:
    root = shutil.copytree(imported / "mcore", tmp_path / "mcore")
    save_args(root, num_layers=None, hidden_size=None, num_attention_heads=8)

    assert same_tensors(export(warm_model_configs, root), imported / "hf")


def test_args_without_a_vocabulary_are_not_enough(bare: Path, warm_model_configs: Path) -> None:
    save_args(bare, vocab_size=None)

    message = refused(warm_model_configs, bare)

    assert "padded_vocab_size 1024" in message
    assert "--hf-config" in message


@pytest.mark.parametrize(
    "change",
    [
        {"swiglu": False},
        {"rotary_interleaved": True},
        {"qk_l2_norm": True},
        {"normalization": "LayerNorm"},
        {"apply_layernorm_1p": True},
        {"position_embedding_type": "learned_absolute"},
        {"softmax_type": "learnable"},
        {"spec": ["some.module", "layer_spec"]},
        {"norm_epsilon": None},
    ],
    ids=str,
)
def test_args_of_no_family_name_the_way_out(bare: Path, warm_model_configs: Path, change: dict[str, object]) -> None:
    save_args(bare, **change)

    assert "--hf-config" in refused(warm_model_configs, bare)


def test_layers_of_the_trainers_own_are_no_family(bare: Path, warm_model_configs: Path) -> None:
    save_run_config(bare, RUN_CONFIG.replace("models.gpt_provider.default_layer_spec", "models.olmoe.olmoe_layer_spec"))

    assert "olmoe_layer_spec" in refused(warm_model_configs, bare)


def test_a_yaml_that_would_make_an_object_is_refused(bare: Path, warm_model_configs: Path) -> None:
    mark = bare / "made"
    save_run_config(
        bare, f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]\n"
    )

    assert "python/object" in refused(warm_model_configs, bare)
    assert not mark.exists()


def test_a_pickle_that_would_run_something_is_read_as_data(bare: Path, warm_model_configs: Path) -> None:
    class Malice:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (bare / "made",)

    save_args(bare, timers=Malice())

    export(warm_model_configs, bare)

    assert not (bare / "made").exists()


def test_a_broken_common_file_is_named(bare: Path, warm_model_configs: Path) -> None:
    (bare / "release" / "common.pt").write_bytes(b"no archive")

    assert "common.pt" in refused(warm_model_configs, bare)


def test_nothing_that_describes_it_names_every_place(bare: Path, warm_model_configs: Path) -> None:
    message = refused(warm_model_configs, bare)

    for place in ("hf/config.json", "model_config.json", "run_config.yaml", "args", "--hf-config"):
        assert place in message
