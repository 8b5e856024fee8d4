"""Megatron checkpoints with keys of their own for each layer, where every job may meet or write them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.families.case import BY_NAME, write
from tests.jobs_here import do, set_up
from tests.jobs_here import planned_setup as planned
from tests.llama_folder import write_llama
from tests.megatron_adapter import fused, read_tensors, save
from worker.checkpoints.common_state import saved_content
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.handlers.context import Answer
from worker.handlers.conversion import fingerprint
from worker.handlers.run import conversion_of
from worker.jobs.errors import BadInputError
from worker.jobs.locations import LocalPaths
from worker.jobs.setup_spec import PeftSettings
from worker.jobs.spec import AdapterExportSpec, AdapterExtractSpec, ExportSpec, ImportSpec, VerifySpec
from worker.jobs.state import VerifyResult

NOWHERE = Path("/nowhere")
OF_ONE = "decoder.layers.3.mlp.linear_fc1.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "llama"
    write_llama(folder, layers=4, hidden=64)
    return folder


@pytest.fixture(scope="module")
def imported(llama: Path, warm_model_configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("imported") / "megatron"
    do(ImportSpec(source=str(llama), target=str(target), layer_keys="per-layer"), warm_model_configs)
    return target


def test_an_import_says_which_keys_it_has(imported: Path) -> None:
    opened = TorchDistFolder.open(imported / "release")

    assert OF_ONE in opened.tensors
    assert not [name for name in opened.tensors if name.startswith("decoder.layers.mlp")]
    assert "decoder.layers.3.mlp.linear_fc1._extra_state/shard_0_1" in opened.objects
    assert saved_content(opened)["non_homogeneous_layers"] is True


def test_verify_and_extract_read_it_as_the_model_that_it_is(llama: Path, imported: Path, tmp_path: Path) -> None:
    answer = do(VerifySpec(source=str(llama), against=str(imported)), NOWHERE)

    assert isinstance(answer, Answer)
    assert isinstance(answer.result, VerifyResult)
    assert answer.result.differing == 0
    spec = AdapterExtractSpec(source=str(llama), tuned=str(imported), target=str(tmp_path / "out"), rank=2)
    with pytest.raises(BadInputError, match="no linear layer that differs"):
        do(spec, NOWHERE)


def test_an_export_of_it_is_what_was_imported(llama: Path, imported: Path, tmp_path: Path) -> None:
    do(ExportSpec(source=str(imported), target=str(tmp_path / "back"), verify=("tensors",)), NOWHERE)

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", llama))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("name", ["gqa", "qwen3-moe-dense-first"])
def test_parts_of_the_one_kind_are_no_parts_of_the_other(tmp_path: Path, name: str) -> None:
    write(BY_NAME[name], tmp_path / "hf")

    def found(**fields: Any) -> str:
        spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "out"), **fields)
        return fingerprint(conversion_of(spec, LocalPaths()), spec)

    assert found() == found(layer_keys="stacked") != found(layer_keys="per-layer")


def test_a_setup_links_it_and_its_adapter_has_such_keys_too(
    imported: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    """DoRA's magnitudes are the norms of the base's rows."""
    peft = PeftSettings(type="dora", dim=4, init_adapter=True)

    set_up(warm_model_configs, imported, tmp_path / "run", base="link", peft=peft, profile="megatron-bridge")

    adapter = tmp_path / "run/adapter/release"
    found, weight = read_tensors(adapter), read_tensors(imported / "release")[OF_ONE]
    magnitude = found[OF_ONE.replace(".weight", ".adapter.weight_magnitude")]
    torch.testing.assert_close(magnitude, weight.norm(dim=1))
    assert saved_content(TorchDistFolder.open(adapter))["non_homogeneous_layers"] is True


def test_a_setup_refers_to_it(imported: Path, tmp_path: Path) -> None:
    assert planned(imported, tmp_path / "run", base="reference")["base"]["way"] == "referenced"


@pytest.mark.parametrize("init", ["source", "random"])
def test_a_setup_writes_either_and_keeps_neither_for_the_other(
    llama: Path, warm_model_configs: Path, tmp_path: Path, init: str
) -> None:
    target = tmp_path / "run"
    set_up(warm_model_configs, llama, target, init=init)
    before = read_tensors(target / "release")

    again = set_up(warm_model_configs, llama, target, init=init, layer_keys="per-layer", on_exists="reuse")

    assert again.bytes > 0
    after = read_tensors(target / "release")
    assert torch.equal(after[OF_ONE], before[OF_ONE.replace("layers.3", "layers")][3])
    assert set_up(warm_model_configs, llama, target, init=init, layer_keys="per-layer", on_exists="reuse").bytes == 0


@pytest.mark.slow
def test_ranks_load_a_setup_of_it(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    result = set_up(warm_model_configs, llama, tmp_path / "run", layer_keys="per-layer", verify=("load", "tensors"))

    assert result.verified is not None
    assert result.verified.loaded_by == 1


def test_what_it_cannot_be_is_refused(llama: Path, imported: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="spec field layer_keys per-layer: found a Megatron checkpoint"):
        planned(imported, tmp_path / "run", layer_keys="per-layer")
    for source, fields in ((llama, {"layer_keys": "per-layer", "dtype": "bf16"}), (bf16(imported, tmp_path), {})):
        with pytest.raises(BadInputError, match=r"keys of the base's layers for verl 0\.9\.1"):
            planned(source, tmp_path / "run", profile="verl", **fields)


def bf16(imported: Path, folder: Path) -> Path:
    """A base that says so; its tensors are not looked at."""
    shutil.copytree(imported, folder / "bf16")
    config = folder / "bf16" / "hf" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    return folder / "bf16"


def test_an_adapter_in_pieces_is_refused(tmp_path: Path) -> None:
    write(BY_NAME["gqa"], tmp_path / "base")
    adapter = save(tmp_path / "m", fused(3), dim=3, alpha=3, target_modules=["linear_fc1"])
    torch.save({"content_metadata": {"singleton_local_shards": True}}, adapter / "iter_0000007" / "common.pt")

    with pytest.raises(BadInputError, match="content_metadata says singleton_local_shards: True"):
        do(AdapterExportSpec(source=str(adapter), target=str(tmp_path / "out"), base=str(tmp_path / "base")), NOWHERE)
