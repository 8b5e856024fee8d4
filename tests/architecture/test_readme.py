"""The README's commands are real: each starts one of ours, and the cheap ones run."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()


def commands() -> Iterator[list[str]]:
    """Every command of the fenced `sh` blocks, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line)


def ferry(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    code = "from api.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_the_readme_shows_commands() -> None:
    assert len(list(commands())) >= 10


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_command_is_one_of_ours(command: list[str], tmp_path: Path) -> None:
    match command:
        case ["ferry", name, *_]:
            assert ferry(name, "--help", cwd=tmp_path).returncode == 0
        case ["curl", *rest]:
            spec = json.loads(rest[rest.index("-d") + 1])["spec"]
            assert spec["kind"] in ("config", "import", "export", "merge", "adapter")
        case [path]:
            assert os.access(PROJECT / path, os.X_OK)
        case _:
            pytest.fail(f"not one of ours: {command}")


@pytest.mark.parametrize("command", [c for c in commands() if "--local" in c or c[1:] == ["families"]], ids=" ".join)
def test_what_needs_no_service_runs(
    command: list[str], tmp_path: Path, write_tiny_llama: Callable[[Path], None]
) -> None:
    write_tiny_llama(tmp_path / "SmolLM2-135M-Instruct")

    done = ferry(*command[1:], cwd=tmp_path)

    assert done.returncode == 0, done.stderr


def test_every_setting_it_names_is_read() -> None:
    named = set(re.findall(r"FERRY_[A-Z_]+", README))
    readers = ("worker/settings.py", "worker/stores/servers.py", "api/settings.py")
    settings = "".join((PROJECT / reader).read_text() for reader in readers)

    assert named == set(re.findall(r"FERRY_[A-Z_]+", settings)) & named


def test_every_file_it_names_exists() -> None:
    paths = re.findall(r"\]\(([^)h][^)]*)\)", README) + re.findall(r"`((?:ops|worker|tests)/[\w./]+)`", README)

    assert [path for path in paths if not (PROJECT / path).exists()] == []
