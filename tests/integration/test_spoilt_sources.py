"""Sources that somebody spoilt, by accident or on purpose: one clear error each, before anything is written."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from tests.jobs_here import do
from tests.llama_folder import write_llama
from worker.engine.processes import CopyOptions
from worker.handlers.run import plan
from worker.jobs.errors import BadInputError, ErrorInfo
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ExportSpec, ImportSpec, JobSpec

WEIGHTS, INDEX, CONFIG, TENSOR = "model.safetensors", "model.safetensors.index.json", "config.json", "model.norm.weight"
HUNG_SECONDS = 60


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    return tmp_path / "hf"


@contextmanager
def not_hanging() -> Iterator[None]:
    """A FIFO would be waited for in vain."""

    def hung(_: int, __: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(HUNG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def refused(hf: Path) -> ErrorInfo:
    return _refused(ImportSpec(source=str(hf), target=str(hf.parent / "out")))


def refused_export(mcore: Path) -> ErrorInfo:
    return _refused(ExportSpec(source=str(mcore), target=str(mcore.parent / "out")))


def _refused(spec: JobSpec) -> ErrorInfo:
    with not_hanging(), pytest.raises(BadInputError) as caught:
        plan(spec, LocalPaths(), CopyOptions(processes=1))
    return caught.value.info


def put(hf: Path, name: str, make: Callable[[Path], Any]) -> None:
    (hf / name).unlink(missing_ok=True)
    make(hf / name)


def rewrite_header(hf: Path, change: Callable[[str], str]) -> None:
    data = (hf / WEIGHTS).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    text = change(data[8:end].decode()).encode()
    (hf / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def entry(**changes: Any) -> Callable[[str], str]:
    """The header with another word on one tensor."""

    def change(text: str) -> str:
        header = json.loads(text)
        header[TENSOR] |= changes
        return json.dumps(header)

    return change


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (Path.mkdir, "a directory"),
        (lambda path: path.symlink_to(path.name), "symbolic link"),
    ],
)
def test_what_is_no_file_is_not_read(hf: Path, name: str, make: Callable[[Path], Any], found: str) -> None:
    put(hf, name, make)

    error = refused(hf)

    assert name in error.thing
    assert found in error.found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (entry(shape=[64.0]), "64.0 for an integer"),
        (entry(shape=["64"]), "'64' for an integer"),
        (entry(shape=[True, 64]), "True for an integer"),
        (entry(shape=[-64]), "[-64]"),
        (entry(shape=None), "shape"),
        (entry(dtype="BOOL"), "BOOL"),
        (entry(dtype=["F32"]), "F32"),
        (entry(data_offsets=[0, 1, 2]), "data_offsets"),
        (entry(data_offsets=[256, 0]), "-256 bytes"),
        (entry(data_offsets=[2**40, 2**40 + 256]), f"at byte {2**40}"),
        (lambda text: text.replace('"data_offsets":[0', '"data_offsets":[Infinity', 1), "Infinity for a number"),
        (lambda text: text.replace("[64]", "[NaN]", 1), "NaN for a number"),
        (lambda text: f'{{"{TENSOR}": {{}}, {text[1:]}', f"'{TENSOR}' twice"),
        (lambda _: "[" * 100_000, "nested too deep"),
        (lambda _: "[1]", "a list"),
        (lambda _: "null", "a NoneType"),
    ],
)
def test_a_header_that_readers_could_take_in_two_ways_is_refused(
    hf: Path, change: Callable[[str], str], found: str
) -> None:
    rewrite_header(hf, change)

    error = refused(hf)

    assert error.code == "bad_header"
    assert WEIGHTS in error.thing
    assert found in error.found


@pytest.mark.parametrize("file", ["..", "", "../hf/model.safetensors", "/etc/passwd", "a\0b", "x" * 5000, 5])
def test_an_index_names_files_beside_it_and_nothing_else(hf: Path, file: object) -> None:
    (hf / INDEX).write_text(json.dumps({"weight_map": {TENSOR: file}}))

    assert refused(hf).code in ("bad_header", "missing_file")


@pytest.mark.parametrize("name", [CONFIG, INDEX])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"rms_norm_eps": NaN}', "{", ""])
def test_json_that_is_none_is_said(hf: Path, name: str, text: str) -> None:
    (hf / name).write_text(text)

    assert name in refused(hf).thing


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_hidden_layers": 10**9}, "num_layers"),
        ({"vocab_size": 10**18}, "vocab_size"),
        ({"intermediate_size": 10**12}, "ffn_hidden_size"),
        ({"rope_theta": float("inf")}, "theta"),
    ],
    ids=["layers", "vocabulary", "ffn", "rope"],
)
def test_sizes_that_no_model_has_are_not_counted_out(hf: Path, change: dict[str, object], named: str) -> None:
    config = json.loads((hf / CONFIG).read_text())
    config.pop("rope_parameters", None)
    (hf / CONFIG).write_text(json.dumps(config | change))

    assert named in refused(hf).thing


def test_a_tokenizer_whose_link_leads_nowhere_is_not_left_out(hf: Path) -> None:
    """As a hub's cache has it when a download was cut off."""
    (hf / "tokenizer.json").symlink_to("../blobs/gone")

    error = refused(hf)

    assert error.code == "missing_file"
    assert "tokenizer.json" in error.thing


def test_shards_that_are_not_there_yet_are_counted(hf: Path) -> None:
    names = {TENSOR: "model-00001-of-00003.safetensors", "x": "model-00002-of-00003.safetensors"}
    (hf / INDEX).write_text(json.dumps({"weight_map": names}))
    shutil.copy(hf / WEIGHTS, hf / "model-00001-of-00003.safetensors")

    error = refused(hf)

    assert "1 of the 2 files" in error.found
    assert "Wait until" in error.next_step


def test_shards_without_an_index_are_no_checkpoint_yet(hf: Path) -> None:
    (hf / WEIGHTS).rename(hf / "model-00001-of-00003.safetensors")

    error = refused(hf)

    assert "no model.safetensors.index.json" in error.found
    assert "Wait until" in error.next_step


def test_a_shard_that_is_still_written_is_shorter_than_its_header_says(hf: Path) -> None:
    os.truncate(hf / WEIGHTS, (hf / WEIGHTS).stat().st_size - 1)

    error = refused(hf)

    assert "cut short" in error.expected
    assert "Wait until" in error.next_step


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    write_llama(folder / "hf", layers=2, hidden=64)
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore")), warm_model_configs)
    return folder / "mcore"


@pytest.fixture
def mcore(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "mcore")


NORM, STACK = "decoder.final_layernorm.weight", "decoder.layers.mlp.linear_fc1.weight"
Index = Any
"""torch's DCP Metadata."""


def change_index(mcore: Path, change: Callable[[Index], None]) -> None:
    path = mcore / "release" / ".metadata"
    index = pickle.loads(path.read_bytes())
    change(index)
    path.write_bytes(pickle.dumps(index))


def stored(**changes: object) -> Callable[[Index], None]:
    def change(index: Index) -> None:
        key = next(key for key in index.storage_data if key.fqn == NORM)
        index.storage_data[key] = dataclasses.replace(index.storage_data[key], **changes)

    return change


def chunk(name: str, **changes: object) -> Callable[[Index], None]:
    def change(index: Index) -> None:
        entry = index.state_dict_metadata[name]
        entry.chunks = [dataclasses.replace(one, **changes) for one in entry.chunks]

    return change


def another_ones(index: Index) -> None:
    """The item of a tensor that is looked at before."""
    keys = {key.fqn: key for key in index.storage_data}
    index.storage_data[keys[NORM]] = index.storage_data[keys["embedding.word_embeddings.weight"]]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (stored(relative_path="../x.distcp"), "'../x.distcp'"),
        (stored(relative_path="/etc/passwd"), "'/etc/passwd'"),
        (stored(relative_path=".."), "'..'"),
        (stored(relative_path=""), "''"),
        (stored(offset=-5), "-5 bytes"),
        (stored(length=-1), "-1 bytes"),
        (stored(offset="0"), "'0' for an integer"),
        (stored(length=None), "None for an integer"),
        (stored(offset=2**40), "no zip directory"),
        (stored(length=2**40), "no zip directory"),
        (chunk(NORM, sizes=torch.Size([128])), "a chunk of [128] at [0]"),
        (chunk(NORM, sizes=torch.Size([-64])), "a chunk of [-64]"),
        (chunk(NORM, sizes=torch.Size([32])), "F32 [64]"),
        (chunk(NORM, offsets=torch.Size([1])), "a chunk of [64] at [1]"),
        (chunk(NORM, sizes=torch.Size([64, 1])), "longer"),
        (chunk(STACK, sizes=torch.Size([2**40, 512, 64])), "a chunk of [1099511627776"),
        (another_ones, f"one item for 'embedding.word_embeddings.weight' and '{NORM}'"),
    ],
)
def test_an_index_of_chunks_that_cannot_be_is_refused(mcore: Path, change: Callable[[Index], None], found: str) -> None:
    change_index(mcore, change)

    error = refused_export(mcore)

    assert error.code == "bad_checkpoint"
    assert found in error.found


@pytest.mark.parametrize("text", [b"", b"20", b"../x", b"release\0", b"9" * 5000, b"\xff\xfe", b"-1", b"1_0"])
def test_a_tracker_that_names_nothing_is_said(mcore: Path, text: bytes) -> None:
    (mcore / "latest_checkpointed_iteration.txt").write_bytes(text)

    error = refused_export(mcore)

    assert "latest_checkpointed_iteration.txt" in error.thing + error.expected
    assert "Wait until its trainer has saved it" in error.next_step


@pytest.mark.parametrize("name", [".metadata", "metadata.json", "__0_0.distcp", "__1_0.distcp"])
def test_an_iteration_that_is_still_saved_is_said(mcore: Path, name: str) -> None:
    (mcore / "release" / name).unlink()

    error = refused_export(mcore)

    assert error.code == "missing_file"
    assert "Wait until its trainer has saved it" in error.next_step


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp"])
def test_a_file_of_chunks_that_is_still_written_is_said(mcore: Path, name: str) -> None:
    os.truncate(mcore / "release" / name, (mcore / "release" / name).stat().st_size // 2)

    error = refused_export(mcore)

    assert name in error.thing
    assert "Wait until its trainer has saved it" in error.next_step
