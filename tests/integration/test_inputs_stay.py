"""Whatever a job reads, its target may neither take the place of it nor lie in it, `on_exists: replace` or not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import write_adapter
from worker.jobs.errors import BadInputError, ConflictError
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
    return SetupSpec(**places, profile="megatron-lm", on_exists="replace")


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


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    write_llama(tmp_path / "base", layers=1, hidden=64)
    (tmp_path / "notes").write_text("mine")

    with pytest.raises(ConflictError, match="a file, which is no output"):
        do(ImportSpec(source=str(tmp_path / "base"), target=str(tmp_path / "notes"), on_exists="replace"), tmp_path)

    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("kind", ["merge", "verify", "extract", "setup"])
def test_a_config_given_beside_an_hf_folder_is_refused(tmp_path: Path, kind: str) -> None:
    write_llama(tmp_path / "base", layers=1, hidden=64)
    write_llama(tmp_path / "other", layers=1, hidden=64)
    base, other, out = (str(tmp_path / name) for name in ("base", "other", "out"))
    spec = {
        "merge": MergeSpec(source=base, target=out, adapters=(AdapterUse(path=other),), hf_config=other),
        "verify": VerifySpec(source=base, against=other, hf_config=other),
        "extract": AdapterExtractSpec(source=base, tuned=other, target=out, rank=4, hf_config=other),
        "setup": SetupSpec(source=base, target=out, hf_config=other),
    }[kind]

    with pytest.raises(BadInputError, match=r"hf_config .*found it beside .*base.*a config\.json of its own"):
        do(spec, tmp_path)


def test_a_folder_of_another_kind_is_called_what_it_is(tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    for name, file in (("peft", "adapter_config.json"), ("mcore", "latest_checkpointed_iteration.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    hf, peft, mcore, out = (str(tmp_path / name) for name in ("hf", "peft", "mcore", "out"))

    for spec, said in (
        (ImportSpec(source=mcore, target=out), "mcore is a Megatron checkpoint"),
        (ImportSpec(source=peft, target=out), "peft is a PEFT adapter"),
        (ExportSpec(source=hf, target=out), "found an HF checkpoint"),
        (ExportSpec(source=peft, target=out), "found a PEFT adapter"),
        (AdapterImportSpec(source=mcore, target=out, base=hf), "mcore is a Megatron checkpoint"),
        (AdapterExportSpec(source=peft, target=out, base=hf), "found a PEFT adapter"),
        (MergeSpec(source=peft, target=out, adapters=(AdapterUse(path=peft),)), "found a PEFT adapter"),
        (MergeSpec(source=hf, target=out, adapters=(AdapterUse(path=hf),)), "found an HF checkpoint"),
    ):
        with pytest.raises(BadInputError, match=said):
            do(spec, tmp_path)


def test_what_is_not_there_is_called_by_its_field(tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    hf, none, out = (str(tmp_path / name) for name in ("hf", "none", "out"))

    for spec, field in (
        (ImportSpec(source=none, target=out), "source"),
        (ExportSpec(source=hf, target=out, hf_config=none), "hf_config"),
        (AdapterImportSpec(source=hf, target=out, base=none), "base"),
        (AdapterExtractSpec(source=hf, tuned=none, target=out, rank=4), "tuned"),
        (MergeSpec(source=hf, target=out, adapters=(AdapterUse(path=none),)), "adapter"),
        (SetupSpec(source=none, target=out), "source"),
    ):
        with pytest.raises(BadInputError, match=f"^{field} {none}: found no such folder"):
            do(spec, tmp_path)
