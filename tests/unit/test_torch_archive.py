"""Archives made without torch are archives to torch, and the other way round."""

import io
import os
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from worker.checkpoints.torch_archive import ArchiveError, find_tensor, object_archive, read_object, tensor_envelope

CASES = [((3, 5), "BF16", torch.bfloat16), ((1, 128, 64), "F32", torch.float32), ((7,), "F16", torch.float16)]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("shape", "name", "dtype"), CASES)
def test_torch_loads_a_framed_tensor(shape: tuple[int, ...], name: str, dtype: torch.dtype) -> None:
    tensor = torch.randn(shape).to(dtype)
    before, after = tensor_envelope(shape, name, tensor.nbytes)

    loaded = torch.load(io.BytesIO(before + raw(tensor) + after), weights_only=True)

    assert torch.equal(loaded, tensor)
    assert loaded.dtype == dtype


def test_the_framed_data_begins_on_torchs_alignment() -> None:
    before, _ = tensor_envelope((4, 4), "F32", 64)

    assert len(before) % 64 == 0


def test_sizes_beyond_four_gigabytes_are_written_as_zip64(tmp_path: Path) -> None:
    nbytes = 5 * 2**30
    before, after = tensor_envelope((nbytes // 2,), "BF16", nbytes)
    path = tmp_path / "big.distcp"
    with path.open("wb") as file:
        file.write(before)
        file.seek(nbytes, os.SEEK_CUR)
        file.write(after)

    loaded = torch.load(path, weights_only=True, mmap=True)
    with path.open("rb") as file:
        found = find_tensor(file.fileno(), 0, path.stat().st_size)

    assert loaded.shape == (nbytes // 2,)
    assert (found.offset, found.shape) == (len(before), (nbytes // 2,))


@pytest.mark.parametrize(("shape", "name", "dtype"), CASES)
def test_a_tensor_that_torch_saved_is_found(
    tmp_path: Path, shape: tuple[int, ...], name: str, dtype: torch.dtype
) -> None:
    tensor = torch.randn(shape).to(dtype)
    path = tmp_path / "saved"
    with path.open("wb") as file:
        file.write(b"before")
        torch.save(tensor, file)

    with path.open("rb") as file:
        found = find_tensor(file.fileno(), 6, path.stat().st_size - 6)

    assert (found.dtype, found.shape) == (name, shape)
    assert path.read_bytes()[found.offset : found.offset + tensor.nbytes] == raw(tensor)


def test_a_view_into_a_larger_storage_is_found_at_its_place(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    path = tmp_path / "saved"
    torch.save(whole[2:4], path)

    with path.open("rb") as file:
        found = find_tensor(file.fileno(), 0, path.stat().st_size)

    assert path.read_bytes()[found.offset : found.offset + 32] == raw(whole[2:4])


def test_a_transposed_tensor_is_refused_rather_than_copied_wrongly(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    torch.save(torch.randn(3, 5).t(), path)

    with path.open("rb") as file, pytest.raises(ArchiveError, match="not contiguous"):
        find_tensor(file.fileno(), 0, path.stat().st_size)


@pytest.mark.parametrize("damage", [b"", b"PK\5\6", b"no archive at all" * 10])
def test_bytes_that_are_no_archive_are_an_archive_error(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(damage)

    with path.open("rb") as file, pytest.raises(ArchiveError):
        find_tensor(file.fileno(), 0, len(damage))


def test_torch_loads_an_object_that_we_wrote() -> None:
    value = [{"iteration": 0, "checkpoint_version": 3.0, "big": 2**40, "flag": True, "none": None}]

    assert torch.load(io.BytesIO(object_archive(value)), weights_only=True) == value


def test_an_object_that_torch_saved_is_read_without_running_its_classes() -> None:
    stream = io.BytesIO()
    torch.save([Namespace(num_layers=2)], stream)

    [arguments] = read_object(stream.getvalue())

    assert arguments.name == "argparse.Namespace"
    assert arguments.attribute("num_layers") == 2
