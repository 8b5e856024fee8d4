"""Quantized checkpoints in, and out: every value that of HF's own arithmetic in fp32, rounded once."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import quantized_folders
from tests.families.case import BY_NAME, Case, write
from tests.jobs_here import do
from tests.llama_folder import write_llama
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.jobs.errors import BadInputError
from worker.jobs.spec import ExportSpec, ImportSpec, VerifySpec


@dataclass(frozen=True)
class Way:
    """One way of quantizing, in a family that is published so."""

    case: Case
    section: dict[str, Any]
    which: Callable[[str], bool]
    quantize: quantized_folders.Quantize


def _changed(name: str, **config: object) -> Case:
    case = BY_NAME[name]
    return Case(name=name, model_type=case.model_type, config={**case.config, "dtype": "bfloat16", **config})


WAYS = {
    "fp8": Way(
        _changed("deepseek-v3", hidden_size=192, moe_intermediate_size=160),
        quantized_folders.FP8,
        lambda name: name.endswith("proj.weight") or "kv_a_proj_with_mqa" in name,
        quantized_folders.fp8_blocks,
    ),
    "mxfp4": Way(
        _changed("gpt-oss", hidden_size=64, intermediate_size=96),
        quantized_folders.MXFP4,
        lambda name: name.endswith(("experts.gate_up_proj", "experts.down_proj")),
        quantized_folders.mxfp4_experts,
    ),
    "int4": Way(
        _changed("deepseek-v3", hidden_size=192, moe_intermediate_size=168),
        quantized_folders.INT4,
        lambda name: ".experts." in name,
        quantized_folders.int4_packed,
    ),
}


@pytest.fixture(params=WAYS)
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with `quantized`, and what it means in `meant`."""
    way = WAYS[request.param]
    write(way.case, tmp_path / "plain")
    quantized_folders.write_quantized(
        tmp_path / "plain", tmp_path / "quantized", tmp_path / "meant", way.section, way.which, way.quantize
    )
    return tmp_path


def test_an_import_holds_what_the_quantized_tensors_mean(folders: Path, warm_model_configs: Path) -> None:
    do(ImportSpec(source=str(folders / "quantized"), target=str(folders / "mcore")), warm_model_configs)
    do(ExportSpec(source=str(folders / "mcore"), target=str(folders / "back")), warm_model_configs)

    back, meant = (load_file(folders / name / "model.safetensors") for name in ("back", "meant"))

    assert back.keys() == meant.keys()
    assert not [name for name in meant if not torch.equal(back[name], meant[name])]
    config = json.loads((folders / "back" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


def test_it_is_verified_against_its_quantized_source(folders: Path, warm_model_configs: Path) -> None:
    do(ImportSpec(source=str(folders / "quantized"), target=str(folders / "mcore")), warm_model_configs)

    for other in ("mcore", "meant"):
        do(VerifySpec(source=str(folders / "quantized"), against=str(folders / other)), warm_model_configs)


def test_a_quantized_weight_without_its_scale_is_an_error(folders: Path, warm_model_configs: Path) -> None:
    tensors = load_file(folders / "quantized" / "model.safetensors")
    lost = next(name for name in tensors if name.endswith(("_scale_inv", "_scales", "weight_scale")))
    del tensors[lost]
    save_file(tensors, folders / "quantized" / "model.safetensors")

    with pytest.raises(BadInputError, match=f"no scale '{lost}'") as caught:
        do(ImportSpec(source=str(folders / "quantized"), target=str(folders / "mcore")), warm_model_configs)

    assert caught.value.info.code == "missing_tensor"
    assert not (folders / "mcore").exists()


def test_a_scale_of_another_shape_is_an_error(folders: Path, warm_model_configs: Path) -> None:
    tensors = load_file(folders / "quantized" / "model.safetensors")
    name = next(name for name in tensors if name.endswith(("_scale_inv", "_scales", "weight_scale")))
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folders / "quantized" / "model.safetensors")

    with pytest.raises(BadInputError, match=f"{name}"):
        do(ImportSpec(source=str(folders / "quantized"), target=str(folders / "mcore")), warm_model_configs)


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"quant_method": "gptq"}, "quant_method"),
        ({"quant_method": "fp8"}, "weight_block_size"),
        (quantized_folders.FP8 | {"fmt": "e5m2"}, "fmt"),
        (quantized_folders.INT4 | {"format": "int-quantized"}, "format"),
        (
            quantized_folders.INT4
            | {"config_groups": {"g": {"weights": {"num_bits": 8, "type": "int", "symmetric": True}}}},
            "num_bits",
        ),
    ],
)
def test_another_way_of_quantizing_is_refused_by_name(
    section: dict[str, Any], named: str, tmp_path: Path, warm_model_configs: Path
) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=32, more={"quantization_config": section})

    with pytest.raises(BadInputError, match=named):
        do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)


@pytest.mark.parametrize(("dtype", "torchs"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_cast_rounds_every_tensor_once(
    dtype: Any, torchs: torch.dtype, tmp_path: Path, warm_model_configs: Path
) -> None:
    write_llama(tmp_path / "hf", layers=2, hidden=64)
    source, target = str(tmp_path / "hf"), tmp_path / "mcore"

    do(ImportSpec(source=source, target=str(target), dtype=dtype), warm_model_configs)
    do(ExportSpec(source=str(target), target=str(tmp_path / "back")), warm_model_configs)

    meant = load_file(tmp_path / "hf" / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert not [name for name in meant if not torch.equal(back[name], meant[name].to(torchs))]
    config = json.loads((target / "model_config.json").read_text())
    assert config["transformer"]["params_dtype"] == str(torchs).removeprefix("torch.")


def test_an_export_casts_too(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=2, hidden=64)
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)

    do(ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "back"), dtype="bf16"), warm_model_configs)

    meant = load_file(tmp_path / "hf" / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert not [name for name in meant if not torch.equal(back[name], meant[name].bfloat16())]
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_routers_fp32_bias_survives_a_cast(tmp_path: Path, warm_model_configs: Path) -> None:
    write(_changed("deepseek-v3"), tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    tensors |= {name: torch.randn(tensors[name].shape) for name in biases}
    save_file(tensors, file)

    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), dtype="fp16"), warm_model_configs)
    do(ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "back"), dtype="bf16"), warm_model_configs)

    back = load_file(tmp_path / "back" / "model.safetensors")
    assert biases
    assert not [name for name in biases if not torch.equal(back[name], tensors[name])]
    assert {back[name].dtype for name in back if name not in biases} == {torch.bfloat16}


def test_a_vocabulary_is_padded_for_a_size_and_cut_back(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=32)  # 1,000 entries, a multiple of 8

    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), vocab_padding=3), warm_model_configs)
    do(ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "back")), warm_model_configs)

    manifest = json.loads((tmp_path / "mcore" / "manifest.json").read_text())
    assert manifest["spec"]["vocab_padding"] == 3
    weights = TorchDistFolder.open(tmp_path / "mcore" / "release")
    assert weights.tensors["embedding.word_embeddings.weight"].shape == (1008, 32)  # 24 divides it
    meant, back = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert not [name for name in meant if not torch.equal(back[name], meant[name])]


def test_an_fp8_export_loads_in_transformers_as_what_it_means(tmp_path: Path, warm_model_configs: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    write_llama(tmp_path / "hf", layers=2, hidden=256, more={"torch_dtype": "bfloat16"})
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), dtype="bf16"), warm_model_configs)

    do(ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "fp8"), quantize="fp8"), warm_model_configs)

    plain = load_file(tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["modules_to_not_convert"] == ["lm_head", "model.embed_tokens"]
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8", quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.float32
    ).state_dict()
    for name, tensor in plain.items():
        meant = tensor.bfloat16()
        if "_proj" in name:
            meant = quantized_folders.fp8_blocks(name, meant)[1]
        # transformers multiplies in fp32 and rounds to bf16 what it dequantizes, and leaves the rest.
        assert torch.equal(loaded[name].bfloat16(), meant.bfloat16()), name


def test_an_fp8_export_imports_again(tmp_path: Path, warm_model_configs: Path) -> None:
    write(_changed("deepseek-v3", hidden_size=192, moe_intermediate_size=160), tmp_path / "hf")
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)
    do(ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "fp8"), quantize="fp8"), warm_model_configs)

    do(ImportSpec(source=str(tmp_path / "fp8"), target=str(tmp_path / "again")), warm_model_configs)
    do(ExportSpec(source=str(tmp_path / "again"), target=str(tmp_path / "back")), warm_model_configs)

    plain, codes, back = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "fp8", "back"))
    assert codes.keys() - plain.keys() == {name for name in codes if name.endswith("_scale_inv")}
    for name, tensor in plain.items():
        meant = tensor
        if f"{name}_scale_inv" in codes:
            stored, value = quantized_folders.fp8_blocks(name, tensor)
            assert torch.equal(codes[name].view(torch.uint8), stored[name].view(torch.uint8))
            meant = value.bfloat16()
        assert torch.equal(back[name], meant)


def test_experts_in_one_tensor_are_not_quantized(tmp_path: Path, warm_model_configs: Path) -> None:
    write(_changed("gpt-oss"), tmp_path / "hf")
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)

    with pytest.raises(BadInputError, match="all experts in one tensor"):
        do(ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "fp8"), quantize="fp8"), warm_model_configs)
