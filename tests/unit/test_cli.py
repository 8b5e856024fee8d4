"""The `ferry` command without a service: what it says, where it says it, and with which exit code."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from api.cli.failure import reading_arguments
from api.cli.locations import as_sent, no_weight, weighted
from api.cli.setup_fields import setup_spec
from api.cli.sizes import show_size
from api.cli.tables import show_age
from tests.llama_folder import write_llama
from worker.jobs.errors import BadInputError
from worker.jobs.sizes import parse_size
from worker.mapping.registry import FAMILIES

NO_SERVER = "http://127.0.0.1:9"


def ferry(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    code = "from api.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    environment = os.environ | {"FERRY_URL": NO_SERVER}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_without_arguments_it_shows_its_commands() -> None:
    shown = ferry("--help").stdout

    for command in ("up", "import", "export", "merge", "adapter", "config", "jobs", "show", "cancel", "families"):
        assert command in shown


def test_families_lists_what_is_supported() -> None:
    names = [family["name"] for family in json.loads(ferry("families", "--json").stdout)]

    assert names == [family.name for family in FAMILIES]
    assert "LlamaForCausalLM" in ferry("families").stdout


def test_without_a_server_the_error_says_what_to_do() -> None:
    done = ferry("jobs")

    assert done.returncode == 1
    assert NO_SERVER in done.stderr
    assert "ferry up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("import",),
        ("unheard",),
        ("import", "a", "b", "--iteration", "-1"),
        ("import", "a" * 5000, "b"),
        ("import", "a", "b", "--layer-keys", "both", "--local"),
        ("merge", "a", "b", "--adapter", "c", "--layer-keys", "per-layer", "--local"),
        ("import", "a", "b", "--local", "--no-wait"),
        ("import", "a", "b", "--plan", "--no-wait"),
        ("export", "a", "b", "--plan", "--priority", "high"),
        ("setup", "a", "b", "--profile", "verl", "--plan", "--timeout", "5"),
        ("import", "a", "b", "--local", "--server", NO_SERVER),
        ("export", "a", "b", "--max-shard-bytes", "lots", "--local"),
        ("merge", "a", "b", "--local"),
        ("adapter", "import", "a", "b", "--local"),
        ("adapter", "import", "a", "b", "--base", "c", "--form", "round", "--local"),
        ("adapter", "extract", "a", "b", "c", "--local"),
        ("adapter", "extract", "a", "b", "c", "--rank", "0", "--local"),
        ("merge", "a", "b", "--adapter", "c", "--combine", "ties", "--local"),
        ("merge", "a", "b", "--adapter", "c", "--density", "0.5", "--local"),
        ("merge", "a", "b", "--adapter", "c:nan", "--local"),
        ("merge", ".", "b", "--adapter", "..:half", "--local"),
        ("import", "a", "b", "--rate", "5MB"),
        ("import", "a", "b", "--jobs", "2"),
        ("export", "a", "b", "--allow-pickle"),
        ("config", "a", "--explain", "--server", NO_SERVER),
        ("setup", "a", "b", "--verbose"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = ferry(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--plan", "--jobs=1"])
def test_bad_input_is_one_block_on_stderr_and_exit_code_2(tmp_path: Path, option: str) -> None:
    done = ferry("import", tmp_path / "nothing", tmp_path / "out", "--local", option)

    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split()[0] for line in done.stderr.splitlines()[-4:]] == ["ferry:", "found", "expected", "next"]
    assert "nothing" in done.stderr


def test_a_worker_module_in_the_current_directory_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit('the wrong one')")

    assert ferry("families", "--json", cwd=tmp_path).returncode == 0


def test_paths_are_sent_absolute_and_roots_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").touch()

    assert as_sent("models/x") == str(tmp_path / "models" / "x")
    assert as_sent("data:models/x") == "data:models/x"
    assert as_sent("a:b") == str(tmp_path / "a:b")


def test_a_number_after_the_last_colon_is_a_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:2").mkdir()

    assert weighted("adapter") == ("adapter", 1.0)
    assert weighted("adapter:-0.5") == ("adapter", -0.5)
    assert weighted("data:adapter") == ("data:adapter", 1.0)
    assert weighted("data:adapter:2") == ("data:adapter", 2.0)
    assert weighted("a:2") == ("a:2", 1.0)


def test_a_word_after_a_folder_and_a_colon_was_meant_as_a_weight_unless_it_is_a_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models", "run.1"):
        (tmp_path / name).mkdir()

    assert no_weight("run.1:abc")
    assert no_weight("models:0.5x")
    assert not no_weight("models:lora")
    assert not no_weight("models:0.5")


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("7k", 7000), ("2TB", 2 * 10**12)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_weight_that_is_no_number_is_told_so(tmp_path: Path) -> None:
    done = ferry("merge", tmp_path, "out", "--adapter", f"{tmp_path}:half", "--local")

    assert done.returncode == 2
    assert f"ferry: --adapter {tmp_path}:half" in done.stderr
    assert "found     'half' after folder" in done.stderr
    assert "expected  a number" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "found no such file or directory"),
        ("", "found nothing"),
        ("- a", "found no names and values, but "),
        ("a: [", "found no valid YAML"),
        ("paralelism: {}", "spec field paralelism: found a field of no such name.*Did you mean 'parallelism'"),
        ("parallelism: {tp: 2}", "spec field parallelism.tp: found a field of no such name.*tp_size"),
        ("parallelism: {tp_size: true}", "spec field parallelism.tp_size: found true, expected a whole number"),
        ("parallelism: {tp_size: 0}", "spec field parallelism.tp_size: found 0, expected a number of at least 1"),
        ("peft: {alpha: .nan}", "spec field peft.alpha: found nan, expected a (finite )?number"),
        ("ddp: {overrides: {a: .nan}}", "spec field ddp.overrides: found .*nan.*, expected finite numbers"),
        ("profile: nemo", "spec field profile: found 'nemo', expected 'megatron-lm', "),
        ("1: 2", "spec field 1: found .*, expected the name of a field"),
        ("profile: verl", "spec field source: found nothing, expected a value"),
    ],
)
def test_a_setup_file_that_cannot_be_read_is_told_in_our_words(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "setup.yaml"
    places = {} if text == "profile: verl" else {"source": "a", "target": "b"}
    if text is not None:
        file.write_text(text)

    with pytest.raises(BadInputError, match=said), reading_arguments():
        setup_spec(file, places)


def test_a_field_of_a_command_is_told_in_our_words() -> None:
    done = ferry("export", "a", "b", "--max-shard-bytes", "1", "--local")

    assert (done.returncode, done.stdout) == (2, "")
    assert "ferry: spec field max_shard_bytes" in done.stderr
    assert "expected  a number of at least 16,384" in done.stderr


@pytest.mark.parametrize("text", ["", "lots", "-1", "5XB", "0"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_sizes_are_shown_short() -> None:
    assert [show_size(n) for n in (0, 999, 1000, 269_060_552, 3 * 10**12)] == ["0 B", "999 B", "1 kB", "269 MB", "3 TB"]
    assert [show_size(n) for n in (999_499, 999_999, 2 * 10**15)] == ["999 kB", "1 MB", "2,000 TB"]


def test_ages_are_shown_short() -> None:
    assert [show_age(timedelta(seconds=n)) for n in (-1, 59.4, 60, 7300, 200_000)] == ["0s", "59s", "1m", "2h", "2d"]


@pytest.fixture
def slow_import(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts `ferry import --local` of a model that is one hole, at a rate at which it takes a minute."""
    (tmp_path / "hf").mkdir()
    write_holes(tmp_path / "hf")

    def start(*arguments: str) -> "subprocess.Popen[str]":
        code = "from api.cli import main; main()"
        command = [sys.executable, "-P", "-c", code, "import", "hf", "mcore", "--local", *arguments]
        environment = os.environ | {"FERRY_IO_BYTES_PER_SECOND": "4MB"}
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, process_group=0
        )

    return start


def write_holes(folder: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10**7,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [10**7, 16],
        "model.norm.weight": [16],
        layer + "input_layernorm.weight": [16],
        layer + "post_attention_layernorm.weight": [16],
        **{f"{layer}self_attn.{name}_proj.weight": [16, 16] for name in "qkvo"},
        layer + "mlp.gate_proj.weight": [24, 16],
        layer + "mlp.up_proj.weight": [24, 16],
        layer + "mlp.down_proj.weight": [16, 24],
    }
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    ("send", "stop", "code"),
    [
        (os.killpg, signal.SIGINT, 130),  # Ctrl-C
        (os.kill, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, 143),
        (os.killpg, signal.SIGHUP, 129),  # the terminal is closed
    ],
)
def test_a_local_import_that_is_stopped_leaves_nothing(
    slow_import: Callable[..., "subprocess.Popen[str]"],
    tmp_path: Path,
    send: Callable[[int, int], None],
    stop: signal.Signals,
    code: int,
) -> None:
    process = slow_import()
    assert process.stderr is not None
    said = process.stderr.readline()
    while "copying" not in said:
        said = process.stderr.readline()

    send(process.pid, stop)

    _, rest = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in rest
    assert os.listdir(tmp_path) == ["hf"]


def test_the_plan_of_a_setup_begins_with_its_verdict_and_counts_what_is_long(tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=16)
    asked = ("setup", tmp_path / "hf", tmp_path / "run", "--tp", 2, "--plan", "--local")

    shown, whole = (json.loads(ferry(*asked, *more).stdout) for more in ((), ("--verbose",)))

    assert list(shown)[:6] == ["verdict", "kind", "family", "source", "target", "setup"]
    assert shown["verdict"].startswith("--tp 2 on 2 GPUs fits: an estimated 0.0 GiB on a rank of stage 0")
    assert shown["conversion"]["tasks"] == len(whole["tasks"]) > 1
    assert not {"tasks", "parts"} & shown.keys()
