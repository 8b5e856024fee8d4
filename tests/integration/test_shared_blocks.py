"""On a file system that can share blocks, what is only moved takes no room."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.megatron_adapter import read_tensors
from worker.checkpoints.extents import Zeros
from worker.checkpoints.sharing import can_share
from worker.engine.processes import CopyOptions
from worker.handlers.conversion import describe, needed_bytes
from worker.handlers.import_checkpoint import prepare
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ExportSpec, ImportSpec


@pytest.fixture
def reflinks(tmp_path: Path) -> Path:
    (tmp_path / "probe").write_bytes(bytes(4096))
    if not can_share(tmp_path / "probe", tmp_path):
        pytest.skip("no btrfs or xfs here: `--basetemp` on one runs this")
    return tmp_path


def used(folder: Path) -> int:
    os.sync()
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_an_import_and_its_export_take_no_room(reflinks: Path, warm_model_configs: Path) -> None:
    write_llama(reflinks / "hf", layers=4, hidden=512)
    spec = ImportSpec(source=str(reflinks / "hf"), target=str(reflinks / "mcore"))
    planned = prepare(spec, LocalPaths())
    before = used(reflinks)

    do(spec, warm_model_configs)
    do(ExportSpec(source=str(reflinks / "mcore"), target=str(reflinks / "back")), warm_model_configs)

    took = used(reflinks) - before
    assert planned.shared_bytes > 0.9 * planned.bytes
    assert needed_bytes(planned) == planned.bytes - planned.shared_bytes
    assert took < 0.2 * 2 * planned.bytes
    ours, theirs = (load_file(reflinks / name / "model.safetensors") for name in ("back", "hf"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(read_tensors(reflinks / "mcore" / "release")) > 5


def test_a_plan_says_what_is_shared(tmp_path: Path) -> None:
    """Also where that is nothing."""
    write_llama(tmp_path / "hf", layers=1, hidden=512)
    planned = prepare(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), LocalPaths())

    disk = describe(planned, CopyOptions())["disk"]

    assert isinstance(disk, dict)
    assert disk["shared_bytes"] == planned.shared_bytes
    assert disk["needed_bytes"] == planned.bytes - planned.shared_bytes
    assert (planned.shared_bytes > 0) == can_share(tmp_path / "hf" / "model.safetensors", tmp_path)
    assert os.listdir(tmp_path) == ["hf"]


def test_gaps_and_padded_headers_are_read_by_the_formats_own_libraries(
    tmp_path: Path, warm_model_configs: Path
) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=512)

    spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), verify=("tensors",))
    back = ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "back"), verify=("tensors",))
    spans = [span for file in prepare(spec, LocalPaths()).files for span in file.spans]
    gaps = [span for span in spans if span.extents == (Zeros(span.length),)]
    do(spec, warm_model_configs)
    do(back, warm_model_configs)

    assert len(gaps) > 5
    header = (tmp_path / "back" / "model.safetensors").read_bytes()[:8]
    source = (tmp_path / "hf" / "model.safetensors").read_bytes()[:8]
    assert (int.from_bytes(header, "little") - int.from_bytes(source, "little")) % 4096 == 0
