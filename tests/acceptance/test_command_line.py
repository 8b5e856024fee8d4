"""The installed `ferry` on a real model without a service: there and back, and what it says of bad input."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Damage = Callable[[Path], None]


def ferry(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [Path(sys.executable).with_name("ferry"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def source(smollm2: Path, tmp_path: Path) -> Path:
    """The model's folder made of links, so that a test can damage it without a copy of the weights."""
    return Path(shutil.copytree(smollm2, tmp_path / "hf", copy_function=os.symlink))


def replaced(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


def with_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another header, and a hole of the right size in place of the weights."""
    file = folder / "model.safetensors"
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    change(header)
    text = json.dumps(header).encode()
    file.unlink()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end_of(header))


def end_of(header: dict[str, Any]) -> int:
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def unknown_tensor(folder: Path) -> None:
    def add(header: dict[str, Any]) -> None:
        offsets = [end_of(header), end_of(header) + 4]
        header["model.layers.7.surprise.weight"] = {"dtype": "BF16", "shape": [2], "data_offsets": offsets}

    with_header(folder, add)


def missing_tensor(folder: Path) -> None:
    """The last one of the file, so that no gap is left."""
    with_header(folder, lambda header: header.pop("model.norm.weight"))


def unknown_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    replaced(folder / "config.json", json.dumps(config | {"surprising_scale": 2.0}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def bad_header(folder: Path) -> None:
    replaced(folder / "model.safetensors", "<html>not found</html>")


@pytest.mark.parametrize("option", ["--jobs=1", "--plan"])
@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (unknown_tensor, "model.layers.7.surprise.weight"),
        (missing_tensor, "model.norm.weight"),
        (unknown_field, "surprising_scale"),
        (no_config, "config.json"),
        (no_weights, "safetensors"),
        (bad_header, "model.safetensors"),
    ],
)
def test_bad_input_is_named_before_the_first_byte(source: Path, damage: Damage, names: str, option: str) -> None:
    damage(source)

    done = ferry("import", source, source.parent / "megatron", "--local", option)

    assert (done.returncode, done.stdout) == (2, "")
    assert names in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(source.parent) == [source.name]


@pytest.mark.parametrize("option", ["--jobs=1", "--plan"])
def test_an_empty_directory_at_the_target_is_not_overwritten(source: Path, option: str) -> None:
    target = source.parent / "megatron"
    target.mkdir()

    done = ferry("import", source, target, "--local", option)

    assert done.returncode == 2
    assert str(target) in done.stderr
    assert os.listdir(target) == []


@pytest.mark.slow
def test_a_model_goes_there_and_back_without_a_service(source: Path) -> None:
    folder = source.parent
    plan = json.loads(ferry("import", source, folder / "megatron", "--local", "--plan").stdout)
    assert not (folder / "megatron").exists()

    there = ferry("import", source, folder / "megatron", "--local")
    back = ferry("export", folder / "megatron", folder / "back", "--local")

    assert (there.returncode, back.returncode) == (0, 0), there.stderr + back.stderr
    assert "copying" in there.stderr
    assert str(folder / "megatron") in there.stdout
    assert plan["bytes"] > 269 * 10**6
    assert (folder / "back" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
