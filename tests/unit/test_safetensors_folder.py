"""Safetensors headers: read as the library reads them, refused where they are wrong, written as the library reads."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.checkpoints.extents import Item, Run
from worker.checkpoints.safetensors_folder import INDEX, SINGLE, SafetensorsFolder, index_json, lay_out_shards
from worker.jobs.errors import BadInputError


def header_file(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(start: int, end: int, shape: list[int], dtype: str = "BF16") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_rows_lie_where_the_library_put_them(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(4, 3), "b": torch.randn(5).bfloat16()}
    save_file(tensors, tmp_path / SINGLE)

    folder = SafetensorsFolder.open(tmp_path)
    (run,) = folder.rows("a", (), 1, 2)

    assert isinstance(run, Run)
    data = (tmp_path / SINGLE).read_bytes()[run.offset : run.offset + run.length]
    assert data == tensors["a"][1:3].numpy().tobytes()
    assert folder.tensors["b"].shape == (5,)


@pytest.mark.parametrize(
    ("header", "data", "found"),
    [
        (b"{not json", b"", "cannot be read"),
        (b"[]", b"", "cannot be read"),
        ({"a": entry(0, 4, [2], "Q9")}, bytes(4), "unknown dtype"),
        ({"a": entry(0, 8, [2])}, bytes(8), "8 bytes for shape"),
        ({"a": entry(0, 4, [2]), "b": entry(8, 12, [2])}, bytes(12), "after byte 4"),
        ({"a": entry(0, 4, [2]), "b": entry(2, 6, [2])}, bytes(6), "after byte 4"),
        ({"a": entry(0, 4, [2])}, bytes(3), "3 bytes of tensor data"),
        ({"a": entry(0, 4, [2])}, bytes(5), "5 bytes of tensor data"),
        ({"a": {"dtype": "BF16"}}, b"", "cannot be read"),
        ({"a": entry(-4, 0, [2])}, b"", "cannot be read"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: object, data: bytes, found: str) -> None:
    header_file(tmp_path / SINGLE, header, data)

    with pytest.raises(BadInputError, match=found) as refused:
        SafetensorsFolder.open(tmp_path)

    assert refused.value.info.code == "bad_header"


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", 2**40) + b"{}")

    with pytest.raises(BadInputError, match="header length"):
        SafetensorsFolder.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))

    with pytest.raises(BadInputError, match="model-00001-of-00002") as refused:
        SafetensorsFolder.open(tmp_path)

    assert refused.value.info.code == "missing_file"


def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))

    with pytest.raises(BadInputError, match="plain file names"):
        SafetensorsFolder.open(tmp_path)


def test_an_index_that_promises_a_tensor_its_file_lacks_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))

    with pytest.raises(BadInputError, match="'b'"):
        SafetensorsFolder.open(tmp_path)


def item(name: str, nbytes: int) -> Item:
    run = Run(Path("source"), 0, nbytes)
    return Item(name=name, index=(), stack=(), dtype="U8", shape=(nbytes,), extents=(run,))


def test_shards_are_named_and_filled_as_hf_does() -> None:
    files = lay_out_shards([item("a", 60), item("b", 50), item("c", 40)], max_shard_bytes=100)

    assert [file.path for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads(index_json(files) or b"")
    assert index["metadata"]["total_size"] == 150
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }


def test_a_single_shard_has_no_index() -> None:
    files = lay_out_shards([item("a", 60)], max_shard_bytes=10)

    assert [file.path for file in files] == [SINGLE]
    assert index_json(files) is None
