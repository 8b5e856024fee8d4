"""A local import as a user runs it: bounded memory, nothing half there, clear errors."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

MIB = 2**20
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 257,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": [vocab, hidden],
        "model.norm.weight": [hidden],
        layer + "input_layernorm.weight": [hidden],
        layer + "post_attention_layernorm.weight": [hidden],
        **{f"{layer}self_attn.{name}_proj.weight": [hidden, hidden] for name in "qkvo"},
        layer + "mlp.gate_proj.weight": [ffn, hidden],
        layer + "mlp.up_proj.weight": [ffn, hidden],
        layer + "mlp.down_proj.weight": [hidden, ffn],
    }


def write_checkpoint(folder: Path, **changes: object) -> Path:
    """An HF folder whose weights are one hole: as large as the config says, and no byte on the disk."""
    config = LLAMA | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes(config).items():
        nbytes = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


Start = Callable[..., "subprocess.Popen[str]"]


def command(source: Path, target: Path, *options: str) -> list[str]:
    spec = json.dumps({"kind": "import", "source": str(source), "target": str(target)})
    return [sys.executable, "-m", "worker", "run", spec, *options]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts imports, and ends what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, stdout: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
        started.append(subprocess.Popen(command(*arguments), stdout=stdout, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def run(source: Path, target: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the last line."""
    done = subprocess.run(command(source, target, *options), stdout=subprocess.PIPE, text=True, timeout=300)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def anonymous_bytes(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def family_of(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_a_tensor_of_twenty_gigabytes_goes_through_in_less_than_400_mib(tmp_path: Path, start: Start) -> None:
    """No process of the command, the one that builds Megatron's config included, needs more."""
    source = write_checkpoint(tmp_path / "hf", hidden_size=2048, vocab_size=20 * 2**30 // 4096, num_attention_heads=16)
    with (tmp_path / "log").open("w") as log:
        process = start(source, tmp_path / "mcore", "--copy-processes", "2", stdout=log)
        peak = 0
        while process.poll() is None:
            peak = max([peak, *(anonymous_bytes(member) for member in family_of(process.pid))])
            time.sleep(0.02)

    assert process.returncode == 0
    assert (tmp_path / "mcore" / "manifest.json").exists()
    written = sum(file.stat().st_size for file in (tmp_path / "mcore" / "release").glob("*.distcp"))
    assert written > 20 * 2**30
    assert 0 < peak < 400 * MIB


def test_a_killed_import_leaves_no_target_and_no_process(tmp_path: Path, start: Start) -> None:
    source = write_checkpoint(tmp_path / "hf", vocab_size=100_001)
    process = start(source, tmp_path / "mcore", "--io-bytes-per-second", str(2 * MIB))
    wait_for_copying(process)
    members = family_of(process.pid)

    process.kill()
    process.wait()

    assert_ended(members)
    assert not (tmp_path / "mcore").exists()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_import_leaves_nothing_at_all(tmp_path: Path, start: Start, stop: signal.Signals) -> None:
    source = write_checkpoint(tmp_path / "hf", vocab_size=100_001)
    process = start(source, tmp_path / "mcore", "--io-bytes-per-second", str(2 * MIB))
    wait_for_copying(process)
    members = family_of(process.pid)

    process.send_signal(stop)

    assert process.wait(10) == 130
    assert_ended(members)
    assert os.listdir(tmp_path) == ["hf"]


def assert_ended(members: list[psutil.Process]) -> None:
    """A zombie has ended; where nobody reaps orphans it stays in the table."""
    deadline = time.monotonic() + 5
    while alive := [member for member in members if lives(member)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_copying(process: "subprocess.Popen[str]") -> None:
    for line in process.stdout or ():
        if json.loads(line)["progress"]["done_bytes"] > 0:
            return
    raise AssertionError("the import ended before it copied anything")


def test_an_existing_target_is_refused_even_when_empty(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")
    (tmp_path / "mcore").mkdir()

    code, answer = run(source, tmp_path / "mcore")

    assert (code, answer["error"]["code"]) == (2, "target_exists")
    assert list((tmp_path / "mcore").iterdir()) == []


def test_a_target_inside_its_source_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")

    code, answer = run(source, source / "mcore")

    assert (code, answer["error"]["code"]) == (2, "bad_location")


def test_an_import_whose_listener_is_gone_ends_without_a_traceback(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf", vocab_size=100_001)
    options = command(source, tmp_path / "mcore", "--io-bytes-per-second", str(2 * MIB))
    with subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()

        process.stdout.close()

        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert os.listdir(tmp_path) == ["hf"]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda hf: (hf / "config.json").unlink(), "missing_file"),
        (lambda hf: (hf / "config.json").write_text("{"), "bad_config"),
        (lambda hf: (hf / "config.json").write_text(json.dumps(LLAMA | {"surprise": 1})), "unknown_config_field"),
        (lambda hf: (hf / "config.json").write_text(json.dumps(LLAMA | {"hidden_size": 32})), "bad_tensor"),
        (lambda hf: (hf / "model.safetensors").unlink(), "missing_file"),
        (lambda hf: os.truncate(hf / "model.safetensors", 5000), "bad_header"),
    ],
    ids=["no config", "broken config", "unknown field", "another config", "no weights", "cut weights"],
)
def test_bad_input_is_an_error_before_the_first_byte(tmp_path: Path, damage: Any, code: str) -> None:
    source = write_checkpoint(tmp_path / "hf")
    damage(source)

    exit_code, answer = run(source, tmp_path / "mcore")

    assert (exit_code, answer["error"]["code"]) == (2, code)
    assert os.listdir(tmp_path) == ["hf"]


def test_a_source_that_does_not_exist_is_named(tmp_path: Path) -> None:
    exit_code, answer = run(tmp_path / "nothing", tmp_path / "mcore")

    assert (exit_code, answer["error"]["code"]) == (2, "missing_file")
    assert "nothing" in answer["error"]["thing"]


def test_a_source_that_changes_while_it_is_read_fails_the_import(tmp_path: Path, start: Start) -> None:
    source = write_checkpoint(tmp_path / "hf", vocab_size=100_001)
    process = start(source, tmp_path / "mcore", "--io-bytes-per-second", str(8 * MIB))
    wait_for_copying(process)

    os.utime(source / "model.safetensors")

    output, _ = process.communicate(timeout=60)
    assert json.loads(output.splitlines()[-1])["error"]["code"] == "source_changed"
    assert os.listdir(tmp_path) == ["hf"]


def test_a_plan_says_what_would_happen_and_writes_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "hf")
    spec = json.dumps({"kind": "import", "source": str(source), "target": str(tmp_path / "mcore")})

    output = subprocess.check_output([sys.executable, "-m", "worker", "plan", spec], text=True)

    plan = json.loads(output)["plan"]
    assert plan["family"] == "llama"
    assert sum(part["bytes"] for part in plan["parts"]) == plan["bytes"]
    assert plan["memory_bound_bytes"] < 400 * MIB
    assert {task["target"] for task in plan["tasks"]} >= {"embedding.word_embeddings.weight"}
    assert os.listdir(tmp_path) == ["hf"]
