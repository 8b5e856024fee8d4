"""`verify`: what was written is as its manifest says, and two checkpoints hold the same bits in any format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.llama_folder import write_llama
from worker.handlers.context import Answer, JobContext, Prepared
from worker.handlers.conversion import refuse_full_disk
from worker.handlers.model_configs import WarmModelConfigs
from worker.handlers.run import run
from worker.jobs.errors import BadInputError
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ExportSpec, ImportSpec, JobSpec, VerifySpec
from worker.jobs.state import Progress, VerifyResult


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    """A folder with `hf`, its import `mcore` and that one's export `back`."""
    folder = tmp_path_factory.mktemp("verify")
    write_llama(folder / "hf", layers=2, hidden=64)
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore")), warm_model_configs)
    do(
        ExportSpec(source=str(folder / "mcore"), target=str(folder / "back"), max_shard_bytes=50_000),
        warm_model_configs,
    )
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(made, tmp_path / "copied")
    return tmp_path / "copied"


def do(spec: JobSpec, socket: Path, report: Callable[[Progress], None] = lambda _: None) -> Answer | Prepared:
    context = JobContext(
        locations=LocalPaths(),
        job_id="job",
        staging_suffix="test",
        report=report,
        reserve=refuse_full_disk,
        model_configs=WarmModelConfigs(socket),
        copy_processes=2,
    )
    outcome = run(spec, context)
    if isinstance(outcome, Prepared):
        outcome.staged.publish()
    return outcome


def verify(socket: Path, source: Path, against: Path | None = None) -> VerifyResult:
    spec = VerifySpec(source=str(source), against=str(against) if against else None)
    outcome = do(spec, socket)
    assert isinstance(outcome, Answer)
    assert isinstance(outcome.result, VerifyResult)
    return outcome.result


def refused(socket: Path, source: Path, against: Path | None = None) -> str:
    with pytest.raises(BadInputError) as caught:
        verify(socket, source, against)
    return f"{caught.value.info.code} {caught.value.info.message}"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("name", ["mcore", "back"])
def test_what_was_just_written_is_good(made: Path, warm_model_configs: Path, name: str) -> None:
    listed = json.loads((made / name / "manifest.json").read_text())

    result = verify(warm_model_configs, made / name)

    assert (result.files, result.tensors) == (len(listed["files"]), len(listed["tensors"]))
    assert result.bytes == sum(file["bytes"] for file in listed["files"].values())


@pytest.mark.parametrize(
    ("one", "other"), [("hf", "mcore"), ("mcore", "hf"), ("hf", "back"), ("mcore", "back"), ("mcore", "mcore")]
)
def test_checkpoints_of_any_formats_are_compared(made: Path, warm_model_configs: Path, one: str, other: str) -> None:
    result = verify(warm_model_configs, made / one, made / other)

    assert result.tensors == len(load_file(made / "hf" / "model.safetensors"))


def test_progress_reaches_all_bytes(made: Path, warm_model_configs: Path) -> None:
    seen: list[Progress] = []
    do(VerifySpec(source=str(made / "hf"), against=str(made / "mcore")), warm_model_configs, seen.append)
    assert seen[-1].phase == "reading"
    assert seen[-1].done_bytes == seen[-1].total_bytes > 0


@pytest.mark.parametrize("where", ["first", "last"])
def test_one_flipped_bit_in_any_file_is_found_and_placed(copied: Path, warm_model_configs: Path, where: str) -> None:
    for path in sorted(path for path in (copied / "mcore").rglob("*") if path.is_file() and path.stat().st_size):
        if path.name == "manifest.json":
            continue
        offset = 0 if where == "first" else path.stat().st_size - 1
        flip(path, offset)
        error = refused(warm_model_configs, copied / "mcore")
        assert error.startswith("not_verified")
        assert str(path) in error
        flip(path, offset)
    verify(warm_model_configs, copied / "mcore")


def test_a_file_that_is_gone_or_cut_short_is_named(copied: Path, warm_model_configs: Path) -> None:
    path = copied / "back" / "config.json"
    text = path.read_bytes()
    path.write_bytes(text[:-1])
    assert f"{len(text) - 1:,} bytes" in refused(warm_model_configs, copied / "back")
    path.unlink()
    assert "no such file" in refused(warm_model_configs, copied / "back")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ({"files": {"../hf/config.json": {"bytes": 0, "segments": []}}, "tensors": {}}, "leads out"),
        ({"files": {"config.json": {"bytes": 9, "segments": [[8, "aa"]]}}, "tensors": {}}, "segments"),
        ({"files": [], "tensors": {}}, "files and digests"),
        ({}, "files and digests"),
    ],
)
def test_a_manifest_that_is_none_is_refused(copied: Path, warm_model_configs: Path, spoil: object, named: str) -> None:
    (copied / "back" / "manifest.json").write_text(json.dumps(spoil))
    assert named in refused(warm_model_configs, copied / "back")


def test_a_folder_without_a_manifest_says_what_is_missing(made: Path, warm_model_configs: Path) -> None:
    assert "manifest.json" in refused(warm_model_configs, made / "hf")


def test_a_tensor_with_other_values_is_named(copied: Path, warm_model_configs: Path) -> None:
    tensors = load_file(copied / "hf" / "model.safetensors")
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] += 1
    save_file(tensors, copied / "hf" / "model.safetensors")

    for other in ("mcore", "back"):
        error = refused(warm_model_configs, copied / "hf", copied / other)
        assert f"1 of {len(tensors)} tensors with other values: {name}" in error


def test_a_tensor_that_one_lacks_is_named_on_both_ways(copied: Path, warm_model_configs: Path) -> None:
    tensors = load_file(copied / "hf" / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(3)}, copied / "hf" / "model.safetensors")

    assert "no tensor more" in refused(warm_model_configs, copied / "hf", copied / "back")
    assert "no tensor more" in refused(warm_model_configs, copied / "back", copied / "hf")


@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_a_tensor_of_another_form_is_named(copied: Path, warm_model_configs: Path, change: str) -> None:
    tensors = load_file(copied / "hf" / "model.safetensors")
    name = "model.norm.weight"
    tensors[name] = tensors[name].double() if change == "dtype" else tensors[name].reshape(1, -1)
    save_file(tensors, copied / "hf" / "model.safetensors")

    assert name in refused(warm_model_configs, copied / "hf", copied / "back")
