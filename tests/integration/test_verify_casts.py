"""Logits of checkpoints that are stored in other forms: what rounding explains passes, a mistake under it does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.jobs_here import do
from tests.llama_folder import write_llama
from worker.handlers.context import Answer, Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import ExportSpec, ImportSpec, VerifySpec
from worker.jobs.spec_fields import LayerKeys
from worker.jobs.state import LogitsFigures, VerifyResult

LAYERS, HEADS = 4, 4
SCALED: dict[str, object] = {"rope_scaling": {"rope_type": "linear", "factor": 1.5}}

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp32, its weights as large as trained ones: rounding does not change all that it says."""
    folder = tmp_path_factory.mktemp("casts") / "model"
    write_llama(folder, layers=LAYERS, hidden=128, more=SCALED)
    tensors = load_file(folder / "model.safetensors")
    trained = {k: v / v.shape[-1] ** 0.5 if v.dim() > 1 else 1 + 0.1 * v for k, v in tensors.items()}
    save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def permuted(tensors: Tensors, config: dict[str, Any]) -> None:
    """Rotary pairs side by side in one layer's q and k, as llama.cpp has them."""
    for part in ("q_proj", "k_proj"):
        name = f"model.layers.2.self_attn.{part}.weight"
        rows, columns = tensors[name].shape
        paired = tensors[name].reshape(-1, 2, 128 // HEADS // 2, columns).swapaxes(1, 2)
        tensors[name] = paired.reshape(rows, columns).contiguous()


def swapped(tensors: Tensors, config: dict[str, Any]) -> None:
    gate, up = (f"model.layers.3.mlp.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def shallower(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith(f"model.layers.{LAYERS - 1}.")]:
        del tensors[name]
    config["num_hidden_layers"] = LAYERS - 1


def unscaled(tensors: Tensors, config: dict[str, Any]) -> None:
    del config["rope_scaling"]


def changed(model: Path, folder: Path, change: Callable[[Tensors, dict[str, Any]], None]) -> Path:
    shutil.copytree(model, folder)
    tensors, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def stored(source: Path, folder: Path, form: str, socket: Path) -> Path:
    """A Megatron checkpoint in a dtype, or an HF folder in block fp8."""
    if form != "fp8":
        do(ImportSpec.model_validate({"source": str(source), "target": str(folder), "dtype": form}), socket)
        return folder
    plain = folder.with_name(f"{folder.name}-plain")
    do(ImportSpec(source=str(source), target=str(plain)), socket)
    do(ExportSpec(source=str(plain), target=str(folder), quantize="fp8"), socket)
    return folder


def compared(one: Path, other: Path, socket: Path) -> LogitsFigures:
    outcome = do(VerifySpec(source=str(one), against=str(other), logits=True), socket)
    assert isinstance(outcome, Answer)
    assert isinstance(outcome.result, VerifyResult)
    assert outcome.result.logits
    return outcome.result.logits


@pytest.mark.parametrize("form", ["bf16", "fp16", "fp8"])
def test_a_plain_cast_passes_and_says_what_rounding_did(
    model: Path, tmp_path: Path, warm_model_configs: Path, form: str
) -> None:
    other = stored(model, tmp_path / "other", form, warm_model_configs)

    for pair in ((model, other), (other, model)):
        figures = compared(*pair, warm_model_configs)

        assert figures.max_abs_difference > 5e-4 * figures.range
        assert figures.rounded is not None
        assert figures.rounded.side == pair.index(model)
        assert figures.rounded.max_abs_difference < 1e-4 * figures.range
        assert figures.rounded.moved == pytest.approx(figures.max_abs_difference, rel=0.1)
        assert "once the weights stored as F32 are rounded" in figures.bar


@pytest.mark.parametrize("layer_keys", ["stacked", "per-layer"])
def test_fp8_and_the_megatron_checkpoint_that_it_was_made_of_say_the_same(
    model: Path, tmp_path: Path, warm_model_configs: Path, layer_keys: LayerKeys
) -> None:
    """Blocks of HF's matrices lie across the rows that Megatron fuses."""
    mcore = tmp_path / "mcore"
    do(ImportSpec(source=str(model), target=str(mcore), dtype="bf16", layer_keys=layer_keys), warm_model_configs)
    spec = ExportSpec(source=str(mcore), target=str(tmp_path / "fp8"), quantize="fp8", verify=("logits",))

    exported = do(spec, warm_model_configs)

    assert isinstance(exported, Prepared)
    assert exported.result.verified is not None
    figures = exported.result.verified.logits
    assert figures is not None
    assert figures.rounded is not None
    assert figures.max_abs_difference > 0.01 * figures.range
    assert figures.rounded.max_abs_difference < 1e-4 * figures.range
    back = ImportSpec(source=str(tmp_path / "fp8"), target=str(tmp_path / "back"), dtype="bf16", verify=("logits",))
    do(back, warm_model_configs)
    assert (tmp_path / "back").exists()


@pytest.mark.parametrize("form", ["bf16", "fp8"])
@pytest.mark.parametrize("change", [permuted, swapped, shallower, unscaled])
def test_a_wrong_conversion_does_not_hide_behind_a_cast(
    model: Path,
    tmp_path: Path,
    warm_model_configs: Path,
    form: str,
    change: Callable[[Tensors, dict[str, Any]], None],
) -> None:
    wrong = changed(model, tmp_path / "wrong", change)
    other = stored(wrong, tmp_path / "other", form, warm_model_configs)

    with pytest.raises(BadInputError, match="once they are rounded alike a largest difference of") as caught:
        compared(model, other, warm_model_configs)

    assert caught.value.info.code == "not_verified"


def test_what_is_stored_alike_is_held_to_the_strict_limit(
    model: Path, tmp_path: Path, warm_model_configs: Path
) -> None:
    figures = compared(model, stored(model, tmp_path / "other", "fp32", warm_model_configs), warm_model_configs)

    assert figures.rounded is None
    assert "at most 0.001 of the range" in figures.bar
    assert "both are stored as F32" in figures.bar
