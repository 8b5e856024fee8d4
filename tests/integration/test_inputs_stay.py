"""Whatever a job reads, its target may neither take the place of it nor lie in it, `on_exists: replace` or not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import write_adapter
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import SetupSpec
from worker.jobs.spec import AdapterExportSpec, AdapterImportSpec, JobSpec, MergeSpec

Ask = Callable[[Path], JobSpec]


def merge(folder: Path, target: str) -> MergeSpec:
    return MergeSpec(
        source=str(folder / "base"),
        target=str(folder / target),
        adapters=[{"path": str(folder / "adapter")}],
        on_exists="replace",
    )


def adapter_import(folder: Path, target: str, base: str = "base") -> AdapterImportSpec:
    places = {"source": str(folder / "adapter"), "base": str(folder / base), "target": str(folder / target)}
    return AdapterImportSpec(**places, on_exists="replace")


def adapter_export(folder: Path) -> AdapterExportSpec:
    places = {"source": str(folder / "mcore-adapter"), "base": str(folder / "base"), "target": str(folder / "base")}
    return AdapterExportSpec(**places, on_exists="replace")


def setup(folder: Path) -> SetupSpec:
    places = {"source": str(folder / "base"), "hf_config": str(folder / "other"), "target": str(folder / "other")}
    return SetupSpec(**places, profile="megatron-lm", init="random", on_exists="replace")


@pytest.mark.parametrize(
    ("ask", "kept"),
    [
        (lambda folder: merge(folder, "adapter"), "adapter"),
        (lambda folder: merge(folder, "adapter/sub"), "adapter"),
        (lambda folder: adapter_import(folder, "base"), "base"),
        (adapter_export, "base"),
        (setup, "other"),
    ],
    ids=["merge over its adapter", "merge inside its adapter", "import over its base", "export over its base", "setup"],
)
def test_no_output_takes_the_place_of_what_its_job_reads(
    tmp_path: Path, warm_model_configs: Path, ask: Ask, kept: str
) -> None:
    write_llama(tmp_path / "base", layers=1, hidden=64)
    write_llama(tmp_path / "other", layers=1, hidden=64)
    write_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    if ask is adapter_export:
        do(adapter_import(tmp_path, "mcore-adapter"), warm_model_configs)
    before = {path: path.read_bytes() for path in (tmp_path / kept).rglob("*") if path.is_file()}

    with pytest.raises(BadInputError) as refused:
        do(ask(tmp_path), warm_model_configs)

    assert refused.value.info.code == "bad_location"
    assert {path: path.read_bytes() for path in (tmp_path / kept).rglob("*") if path.is_file()} == before
