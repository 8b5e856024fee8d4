"""All that decided a plan is held: files as they were parsed, names that were looked for and not there, links."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.changing_sources import (
    TRACKER,
    Asked,
    adapter_exported,
    adapter_extracted,
    adapter_imported,
    adapter_imported_beside_megatron,
    appear,
    at_first_progress,
    compared,
    exported,
    exported_by_config,
    imported,
    imported_from_shards,
    make,
    merged,
    merged_adapter,
    merged_megatron,
    refused,
    rewritten_once_read,
    same_times,
    set_back,
    set_up,
    set_up_from_hf,
    swap_for_another,
)
from tests.integration.test_described import save_run_config
from tests.integration.test_older_format import state_dict
from tests.jobs_here import do
from tests.unit.test_legacy_torch import save_rank
from worker.handlers.conversion import fingerprint
from worker.handlers.run import conversion_of
from worker.jobs.errors import BadInputError
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ConversionSpec, ExportSpec, JobSpec, VerifySpec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    folder = make(tmp_path_factory.mktemp("made"), warm_model_configs)
    save_rank(folder / "older" / "iter_0000007", "mp_rank_00", state_dict(folder / "mcore" / "release"))
    (folder / "older" / TRACKER).write_text("7")
    save_run_config(folder / "mcore")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(made, tmp_path / "here")


def older(here: Path) -> JobSpec:
    return ExportSpec(source=str(here / "older"), target=str(here / "out"), hf_config=str(here / "hf"))


@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        (imported, "hf/config.json"),
        (imported, "hf/model.safetensors"),
        (imported_from_shards, "sharded/model.safetensors.index.json"),
        (imported_from_shards, "sharded/model-00002-of-00005.safetensors"),
        (exported, f"mcore/{TRACKER}"),
        (exported, "mcore/hf/config.json"),
        (exported, "mcore/release/.metadata"),
        (exported, "mcore/release/metadata.json"),
        (exported, "mcore/release/common.pt"),
        (exported, "mcore/release/run_config.yaml"),
        (exported, "mcore/release/__0_0.distcp"),
        (exported_by_config, "hf/config.json"),
        (older, f"older/{TRACKER}"),
        (older, "older/iter_0000007/mp_rank_00/model_optim_rng.pt"),
        (merged, "hf/config.json"),
        (merged, "hf/model.safetensors"),
        (merged, "adapter/adapter_config.json"),
        (merged, "adapter/adapter_model.safetensors"),
        (merged_megatron, f"mcore/{TRACKER}"),
        (merged_megatron, "mcore_adapter/peft_config.json"),
        (merged_megatron, "mcore_adapter/release/.metadata"),
        (merged_adapter, "mcore_adapter/hf/adapter_config.json"),
        (adapter_imported, "adapter/adapter_config.json"),
        (adapter_imported, "hf/config.json"),
        (adapter_imported_beside_megatron, f"mcore/{TRACKER}"),
        (adapter_exported, "mcore_adapter/peft_config.json"),
        (adapter_exported, "mcore_adapter/hf/config.json"),
        (adapter_extracted, "tuned/config.json"),
        (adapter_extracted, "tuned/model.safetensors"),
        (set_up, f"mcore/{TRACKER}"),
        (set_up, "mcore/release/common.pt"),
        (set_up_from_hf, "hf/config.json"),
        (compared, "hf/config.json"),
        (compared, f"mcore/{TRACKER}"),
        (compared, "mcore/release/.metadata"),
    ],
)
def test_what_was_parsed_is_what_is_held(
    here: Path, warm_model_configs: Path, monkeypatch: pytest.MonkeyPatch, spec: Asked, changed: str
) -> None:
    """Written again right after it was read, long before the plan is whole."""
    rewritten = rewritten_once_read(monkeypatch, here / changed)

    with pytest.raises(BadInputError) as caught:
        do(spec(here), warm_model_configs, allow_pickle=True)

    assert rewritten
    assert caught.value.info.code == "source_changed"
    assert str(here / changed) in caught.value.info.thing
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (imported, "hf/model.safetensors.index.json"),
        (imported, "hf/model-00001-of-00002.safetensors"),
        (imported, "hf/generation_config.json"),
        (imported, "hf/tokenizer.model"),
        (imported, "hf/chat_template.jinja"),
        (imported, "hf/additional_chat_templates/tool.jinja"),
        (imported_from_shards, "sharded/model-00006-of-00006.safetensors"),
        (exported, "mcore/hf/generation_config.json"),
        (exported, "mcore/.metadata"),
        (exported, "mcore/mp_rank_00/model_optim_rng.pt"),
        (older, "older/iter_0000007/mp_rank_01/model_optim_rng.pt"),
        (older, "older/iter_0000007/.metadata"),
        (older, "older/iter_0000007/run_config.yaml"),
        (merged, "hf/chat_template.jinja"),
        (merged, "hf/model.safetensors.index.json"),
        (merged_adapter, "mcore_adapter/adapter_config.json"),
        (merged_adapter, "mcore_adapter/release/run_config.yaml"),
        (merged_adapter, "mcore_adapter/release/common.pt"),
        (merged_megatron, "mcore/config.json"),
        (adapter_imported_beside_megatron, "mcore/config.json"),
        (adapter_exported, "mcore_adapter/release/run_config.yaml"),
        (adapter_exported, "mcore_adapter/.metadata"),
        (adapter_extracted, "mcore/.metadata"),
        (adapter_extracted, "tuned/model.safetensors.index.json"),
        (set_up, "mcore/release/__9_0.distcp"),
        (set_up, "mcore/config.json"),
        (set_up_from_hf, "hf/chat_template.jinja"),
        (set_up_from_hf, "hf/model.safetensors.index.json"),
        (compared, "hf/model.safetensors.index.json"),
        (compared, "mcore/.metadata"),
    ],
)
def test_a_name_that_was_not_there_stays_so(here: Path, warm_model_configs: Path, spec: Asked, name: str) -> None:
    """It would have made another plan, or none."""
    found = refused(spec(here), _first_new(here / name), warm_model_configs, appear(here / name), allow_pickle=True)

    assert "not there when the job was planned" in found


def _first_new(path: Path) -> Path:
    return path.parent if path.parent.name.startswith("mp_rank") and not path.parent.exists() else path


@pytest.mark.parametrize(
    ("without", "name"),
    [
        ("hf", "mcore/hf/config.json"),
        ("hf model_config.json", "mcore/model_config.json"),
        ("release/run_config.yaml", "mcore/release/run_config.yaml"),
        ("release/common.pt", "mcore/release/common.pt"),
    ],
)
def test_a_description_that_comes_too_late_is_none(
    here: Path, warm_model_configs: Path, without: str, name: str
) -> None:
    saved = (here / name).read_bytes()
    for part in without.split():
        path = here / "mcore" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def come() -> None:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(saved)

    found = refused(exported(here), here / name, warm_model_configs, come)

    assert "not there when the job was planned" in found


@pytest.mark.parametrize("name", ["hf/README.md", "hf/training_args.bin", "hf/events/1.json", "mcore/iter_0000020/x"])
def test_what_was_never_asked_may_come(here: Path, warm_model_configs: Path, name: str) -> None:
    spec = imported if name.startswith("hf") else exported
    do(spec(here), warm_model_configs, at_first_progress(appear(here / name)))

    assert (here / name).exists()
    assert (here / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("spec", "name"),
    [(imported, "hf/model.safetensors"), (exported, "mcore/release/__0_0.distcp"), (exported, f"mcore/{TRACKER}")],
)
def test_a_file_renamed_into_the_place_of_another_is_found(
    here: Path, warm_model_configs: Path, spec: Asked, name: str
) -> None:
    """Of its size and time."""

    def replace() -> None:
        shutil.copy2(here / name, here / "another")
        (here / "another").rename(here / name)

    refused(spec(here), here / name, warm_model_configs, replace)


@pytest.mark.parametrize(("spec", "folder"), [(exported, "mcore/release"), (imported, "hf"), (set_up, "mcore/release")])
def test_a_folder_swapped_for_another_is_found(here: Path, warm_model_configs: Path, spec: Asked, folder: str) -> None:
    refused(spec(here), here / folder, warm_model_configs, swap_for_another(here / folder))


def test_a_folder_that_is_rotated_away_is_found(here: Path, warm_model_configs: Path) -> None:
    release = here / "mcore" / "release"

    found = refused(exported(here), release, warm_model_configs, lambda: shutil.rmtree(release))

    assert "any more" in found


@pytest.mark.parametrize(("spec", "link", "to"), [(imported, "hf", "hf-2"), (exported, "mcore", "mcore-2")])
def test_a_link_that_leads_elsewhere_is_found(
    here: Path, warm_model_configs: Path, spec: Asked, link: str, to: str
) -> None:
    shutil.copytree(here / link, here / to)
    (here / link).rename(here / f"{link}-1")
    (here / link).symlink_to(f"{link}-1")

    def move() -> None:
        (here / "new").symlink_to(to)
        (here / "new").rename(here / link)

    found = refused(spec(here), here / f"{link}-1", warm_model_configs, move)

    assert to in found


def test_a_file_behind_a_moved_link_is_found(here: Path, warm_model_configs: Path) -> None:
    """As the hub's cache has them."""
    weights = here / "hf" / "model.safetensors"
    shutil.copy2(weights, here / "blob-2")
    weights.rename(here / "blob-1")
    weights.symlink_to("../blob-1")

    def move() -> None:
        weights.unlink()
        weights.symlink_to("../blob-2")

    refused(imported(here), weights, warm_model_configs, move)


def test_a_rewrite_through_another_name_is_found(here: Path, warm_model_configs: Path) -> None:
    weights = here / "hf" / "model.safetensors"
    (here / "other-name").hardlink_to(weights)

    refused(
        imported(here), weights, warm_model_configs, lambda: (here / "other-name").write_bytes(weights.read_bytes())
    )


def test_a_folder_replaced_while_it_is_verified_is_not_called_broken(here: Path, warm_model_configs: Path) -> None:
    """Its manifest is the one's, its files are the other's."""
    (here / "mcore" / "release" / "common.pt").unlink()
    (here / "mcore" / "release" / "run_config.yaml").unlink()
    shutil.copytree(here / "mcore", here / "next")
    data = here / "next" / "release" / "__0_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))
    same_times(data, (here / "mcore" / "release" / "__0_0.distcp").stat())

    def exchange() -> None:
        (here / "mcore").rename(here / "gone")
        (here / "next").rename(here / "mcore")

    with pytest.raises(BadInputError) as caught:
        do(VerifySpec(source=str(here / "mcore")), warm_model_configs, at_first_progress(exchange))

    assert caught.value.info.code == "source_changed"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (imported, "hf/model.safetensors"),
        (imported, "hf/config.json"),
        (exported, f"mcore/{TRACKER}"),
        (exported, "mcore/release/run_config.yaml"),
        (merged, "adapter/adapter_model.safetensors"),
        (compared, "hf/model.safetensors"),
    ],
)
def test_a_time_that_was_set_back_hides_nothing(here: Path, warm_model_configs: Path, spec: Asked, name: str) -> None:
    """All has been read by then: what changes before is copied as it is now."""
    phase = "finalizing" if spec is not compared else "reading"

    found = refused(spec(here), here / name, warm_model_configs, set_back(here / name), phase=phase)

    assert "of the same size and time" in found


@pytest.mark.parametrize("spec", [imported, exported, merged, set_up, compared])
def test_links_and_rights_are_no_content(here: Path, warm_model_configs: Path, spec: Asked) -> None:
    """A setup of the same base, a backup: they move the times of the inode alone."""

    def touch() -> None:
        for folder in ("hf", "mcore", "adapter"):
            for path in [path for path in (here / folder).rglob("*") if path.is_file()]:
                (here / "linked").hardlink_to(path)
                (here / "linked").unlink()
                path.chmod(0o640)

    do(spec(here), warm_model_configs, at_first_progress(touch))


def rename_over(path: Path) -> None:
    shutil.copy2(path, path.with_name("another"))
    path.with_name("another").rename(path)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (imported, "hf/model.safetensors"),
        (imported, "hf/config.json"),
        (exported, "mcore/release/__0_0.distcp"),
        (exported, "mcore/release/.metadata"),
        (exported, f"mcore/{TRACKER}"),
        (merged, "hf/model.safetensors"),
        (merged, "adapter/adapter_model.safetensors"),
        (adapter_imported, "adapter/adapter_model.safetensors"),
        (adapter_exported, "mcore_adapter/release/__0_0.distcp"),
        (set_up_from_hf, "hf/model.safetensors"),
    ],
)
@pytest.mark.parametrize("change", [rename_over, lambda path: set_back(path)()])
def test_parts_of_a_source_of_the_same_sizes_and_times_are_not_used(
    here: Path, spec: Asked, name: str, change: Callable[[Path], None]
) -> None:
    before = _fingerprint(spec(here))
    unchanged = _fingerprint(spec(here))

    change(here / name)

    assert unchanged == before
    try:
        assert _fingerprint(spec(here)) != before
    except BadInputError:  # No plan is made of it at all.
        assert name.endswith((".metadata", ".json", TRACKER))


def _fingerprint(spec: JobSpec) -> str:
    asked = cast("ConversionSpec", spec)
    return fingerprint(conversion_of(asked, LocalPaths()), asked)
