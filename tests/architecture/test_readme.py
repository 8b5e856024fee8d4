"""The README's and the guide's commands are real: each starts one of ours, and the cheap ones run."""

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
PAGES = (PROJECT / "README.md", *sorted((PROJECT / "ops" / "guide").glob("*.md")))
TEXT = "\n".join(page.read_text() for page in PAGES)


def commands(text: str = TEXT) -> Iterator[list[str]]:
    """Every command of the fenced `sh` blocks, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
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
            assert spec["kind"] in ("config", "import", "export", "merge", "adapter", "setup", "verify")
        case [path]:
            assert os.access(PROJECT / path, os.X_OK)
        case _:
            pytest.fail(f"not one of ours: {command}")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_needs_no_service_runs_in_the_order_of_its_page(
    page: Path, tmp_path: Path, write_tiny_llama: Callable[[Path], None]
) -> None:
    write_tiny_llama(tmp_path / "SmolLM2-135M-Instruct")

    for command in commands(page.read_text()):
        if "--local" in command or command[1:] == ["families"]:
            done = ferry(*command[1:], cwd=tmp_path)
            assert done.returncode == 0, f"{command}: {done.stderr}"


def test_every_setting_it_names_is_read() -> None:
    named = set(re.findall(r"FERRY_[A-Z_]+", TEXT))
    readers = ("worker/settings.py", "worker/stores/servers.py", "api/settings.py")
    settings = "".join((PROJECT / reader).read_text() for reader in readers)

    assert named == set(re.findall(r"FERRY_[A-Z_]+", settings)) & named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_it_names_exists(page: Path) -> None:
    links = [page.parent / path for path in re.findall(r"\]\(([^)h][^)]*)\)", page.read_text())]
    names = [PROJECT / path for path in re.findall(r"`((?:ops|worker|tests)/[\w./]+)`", page.read_text())]

    assert [path for path in links + names if not path.exists()] == []
