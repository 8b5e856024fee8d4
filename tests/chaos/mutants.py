"""Faults in the code itself, which a run must find: the check of the checks."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .stack import PROJECT


@dataclass(frozen=True, slots=True)
class Mutant:
    """One line taken out, or made wrong."""

    file: str
    line: str
    becomes: str


MUTANTS: Mapping[str, Mutant] = {
    "unfenced": Mutant(
        "worker/stores/lua/shared.lua",
        "return get(id, 'state') == 'running' and number(id, 'attempts') == fence",
        "return get(id, 'state') == 'running'",
    ),
}


def make(name: str, folder: Path) -> Path:
    """A copy of the code with this fault in it."""
    mutant = MUTANTS[name]
    for room in ("api", "worker"):
        shutil.copytree(PROJECT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / mutant.file
    text = file.read_text()
    if text.count(mutant.line) != 1:
        raise RuntimeError(f"mutant {name}: {mutant.file} has the line {text.count(mutant.line)} times")
    file.write_text(text.replace(mutant.line, mutant.becomes))
    return folder
