"""A source that changes under a job fails it by name, whichever file of it decides what is written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_described import save_args, save_run_config
from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import write_adapter
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import SetupSpec
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    AdapterUse,
    ExportSpec,
    ImportSpec,
    JobSpec,
    MergeSpec,
    VerifySpec,
)
from worker.jobs.state import Progress

TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    """A folder with `hf` and its import `mcore`, an `adapter` and its import `mcore_adapter`."""
    folder = tmp_path_factory.mktemp("made")
    write_llama(folder / "hf", layers=2, hidden=64)
    (folder / "hf" / "tokenizer.json").write_text("{}")
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore")), warm_model_configs)
    spec = ExportSpec(source=str(folder / "mcore"), target=str(folder / "sharded"), max_shard_bytes=200_000)
    do(spec, warm_model_configs)
    write_adapter(folder / "hf", folder / "adapter", target_modules=["q_proj", "k_proj", "v_proj"])
    _import_adapter(folder, warm_model_configs)
    save_args(folder / "mcore")
    return folder


def _import_adapter(folder: Path, socket: Path) -> None:
    source, target, base = (str(folder / name) for name in ("adapter", "mcore_adapter", "hf"))
    do(AdapterImportSpec(source=source, target=target, base=base), socket)


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(made, tmp_path / "here")


def change_under(spec: JobSpec, changed: Path, socket: Path) -> BadInputError:
    """Run the job, `changed` becoming another file at its first progress."""
    changed_at: list[Progress] = []

    def report(progress: Progress) -> None:
        if not changed_at:
            changed.write_bytes(changed.read_bytes() + b"\n")
        changed_at.append(progress)

    with pytest.raises(BadInputError) as caught:
        do(spec, socket, report)
    assert changed_at
    return caught.value


def refused(spec: Any, changed: Path, socket: Path) -> None:
    folder = Path(spec.target).parent if not isinstance(spec, VerifySpec) else Path(spec.source).parent
    beside = sorted(path.name for path in folder.iterdir())

    error = change_under(spec, changed, socket)

    assert error.info.code == "source_changed"
    assert str(changed) in error.info.thing
    assert sorted(path.name for path in folder.iterdir()) == beside


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


def imported(here: Path) -> JobSpec:
    return AdapterImportSpec(source=str(here / "adapter"), target=str(here / "out"), base=str(here / "hf"))


def imported_beside_megatron(here: Path) -> JobSpec:
    return AdapterImportSpec(source=str(here / "adapter"), target=str(here / "out"), base=str(here / "mcore"))


def exported(here: Path) -> JobSpec:
    return AdapterExportSpec(source=str(here / "mcore_adapter"), target=str(here / "out"))


def exported_beside_hf(here: Path) -> JobSpec:
    return AdapterExportSpec(source=str(here / "mcore_adapter"), target=str(here / "out"), base=str(here / "hf"))


def extracted(here: Path) -> JobSpec:
    return AdapterExtractSpec(source=str(here / "mcore"), tuned=str(here / "tuned"), target=str(here / "out"), rank=2)


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        (imported, "adapter/adapter_config.json"),
        (imported, "hf/config.json"),
        (imported_beside_megatron, f"mcore/{TRACKER}"),
        (imported_beside_megatron, "mcore/hf/config.json"),
        (exported, f"mcore_adapter/{TRACKER}"),
        (exported, "mcore_adapter/peft_config.json"),
        (exported, "mcore_adapter/hf/config.json"),
        (exported, "mcore_adapter/hf/adapter_config.json"),
        (exported_beside_hf, "hf/config.json"),
        (extracted, f"mcore/{TRACKER}"),
        (extracted, "mcore/hf/config.json"),
        (extracted, "tuned/config.json"),
    ],
)
def test_an_adapter_is_of_one_source(
    here: Path, warm_model_configs: Path, spec: Callable[[Path], JobSpec], changed: str
) -> None:
    merge = MergeSpec(
        source=str(here / "hf"), target=str(here / "tuned"), adapters=(AdapterUse(path=str(here / "adapter")),)
    )
    do(merge, warm_model_configs)

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
