"""A source that changes under a job fails it by name, whichever file of it decides what is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.changing_sources import (
    TRACKER,
    Asked,
    adapter_exported,
    adapter_exported_beside_hf,
    adapter_extracted,
    adapter_imported,
    adapter_imported_beside_megatron,
    append_to,
    make,
)
from tests.changing_sources import refused as refused_after
from tests.integration.test_described import save_run_config
from tests.jobs_here import do
from worker.jobs.setup_spec import SetupSpec
from worker.jobs.spec import AdapterUse, ExportSpec, ImportSpec, JobSpec, MergeSpec, VerifySpec
from worker.jobs.state import Progress


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    return make(tmp_path_factory.mktemp("made"), warm_model_configs)


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(made, tmp_path / "here")


def refused(spec: JobSpec, changed: Path, socket: Path) -> None:
    """The file becomes another one."""
    refused_after(spec, changed, socket, append_to(changed))


@pytest.mark.parametrize(
    "changed", ["hf/config.json", "hf/tokenizer.json", "hf/model.safetensors", "sharded/model.safetensors.index.json"]
)
def test_an_import_is_of_one_source(here: Path, warm_model_configs: Path, changed: str) -> None:
    source = here / changed

    refused(ImportSpec(source=str(source.parent), target=str(here / "out")), source, warm_model_configs)


@pytest.mark.parametrize(
    "changed",
    [
        TRACKER,
        "hf/config.json",
        "hf/tokenizer.json",
        "release/common.pt",
        "release/metadata.json",
        "release/.metadata",
        "release/__0_0.distcp",
    ],
)
def test_an_export_is_of_one_source(here: Path, warm_model_configs: Path, changed: str) -> None:
    spec = ExportSpec(source=str(here / "mcore"), target=str(here / "out"))

    refused(spec, here / "mcore" / changed, warm_model_configs)


def test_a_model_config_beside_the_checkpoint_is_a_source(here: Path, warm_model_configs: Path) -> None:
    shutil.rmtree(here / "mcore" / "hf")
    spec = ExportSpec(source=str(here / "mcore"), target=str(here / "out"))

    refused(spec, here / "mcore" / "model_config.json", warm_model_configs)


@pytest.mark.parametrize("described_beside", [True, False])
def test_a_run_config_in_the_checkpoint_is_a_source(
    here: Path, warm_model_configs: Path, described_beside: bool
) -> None:
    """Also where it is only held against what lies beside."""
    save_run_config(here / "mcore")
    if not described_beside:
        shutil.rmtree(here / "mcore" / "hf")
        (here / "mcore" / "model_config.json").unlink()
    spec = ExportSpec(source=str(here / "mcore"), target=str(here / "out"))

    refused(spec, here / "mcore" / "release" / "run_config.yaml", warm_model_configs)


@pytest.mark.parametrize("given", ["hf", "hf/config.json"])
def test_a_given_config_is_a_source(here: Path, warm_model_configs: Path, given: str) -> None:
    spec = ExportSpec(source=str(here / "mcore"), target=str(here / "out"), hf_config=str(here / given))

    refused(spec, here / "hf" / "config.json", warm_model_configs)


def test_a_tracker_that_was_not_asked_is_no_source(here: Path, warm_model_configs: Path) -> None:
    tracker = here / "mcore" / TRACKER

    def trainer_saves(_: Progress) -> None:
        tracker.write_text("20")

    spec = ExportSpec(source=str(here / "mcore" / "release"), target=str(here / "out"))
    do(spec, warm_model_configs, trainer_saves)

    assert tracker.read_text() == "20"
    assert (here / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("to", ["hf", "megatron"])
@pytest.mark.parametrize(
    ("base", "adapter", "changed"),
    [
        ("hf", "adapter", "hf/config.json"),
        ("hf", "adapter", "hf/tokenizer.json"),
        ("hf", "adapter", "adapter/adapter_config.json"),
        ("hf", "adapter", "adapter/adapter_model.safetensors"),
        ("hf", "mcore_adapter", f"mcore_adapter/{TRACKER}"),
        ("hf", "mcore_adapter", "mcore_adapter/peft_config.json"),
        ("hf", "mcore_adapter", "mcore_adapter/hf/adapter_config.json"),
        ("hf", "mcore_adapter", "mcore_adapter/hf/config.json"),
        ("hf", "mcore_adapter", "mcore_adapter/release/metadata.json"),
        ("mcore", "adapter", f"mcore/{TRACKER}"),
        ("mcore", "adapter", "mcore/hf/config.json"),
        ("mcore", "adapter", "mcore/release/common.pt"),
        ("mcore", "adapter", "mcore/release/.metadata"),
    ],
)
def test_a_merge_is_of_one_base_and_one_adapter(
    here: Path, warm_model_configs: Path, base: str, adapter: str, changed: str, to: Any
) -> None:
    adapters = (AdapterUse(path=str(here / adapter)),)
    spec = MergeSpec(source=str(here / base), target=str(here / "out"), adapters=adapters, to=to)

    refused(spec, here / changed, warm_model_configs)


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        (adapter_imported, "adapter/adapter_config.json"),
        (adapter_imported, "hf/config.json"),
        (adapter_imported_beside_megatron, f"mcore/{TRACKER}"),
        (adapter_imported_beside_megatron, "mcore/hf/config.json"),
        (adapter_exported, f"mcore_adapter/{TRACKER}"),
        (adapter_exported, "mcore_adapter/peft_config.json"),
        (adapter_exported, "mcore_adapter/hf/config.json"),
        (adapter_exported, "mcore_adapter/hf/adapter_config.json"),
        (adapter_exported_beside_hf, "hf/config.json"),
        (adapter_extracted, f"mcore/{TRACKER}"),
        (adapter_extracted, "mcore/hf/config.json"),
        (adapter_extracted, "tuned/config.json"),
    ],
)
def test_an_adapter_is_of_one_source(here: Path, warm_model_configs: Path, spec: Asked, changed: str) -> None:
    refused(spec(here), here / changed, warm_model_configs)


@pytest.mark.parametrize("changed", [TRACKER, "hf/config.json", "hf/tokenizer.json", "release/common.pt"])
def test_a_setup_is_of_one_base(here: Path, warm_model_configs: Path, changed: str) -> None:
    spec = SetupSpec(source=str(here / "mcore"), target=str(here / "out"), profile="megatron-lm")

    refused(spec, here / "mcore" / changed, warm_model_configs)


@pytest.mark.parametrize(
    "changed", ["hf/config.json", "hf/model.safetensors", f"mcore/{TRACKER}", "mcore/hf/config.json"]
)
def test_a_comparison_is_of_two_sources(here: Path, warm_model_configs: Path, changed: str) -> None:
    refused(VerifySpec(source=str(here / "hf"), against=str(here / "mcore")), here / changed, warm_model_configs)
