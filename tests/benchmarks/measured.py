"""A command run with its seconds and the memory of its process tree measured."""

import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How a command went."""

    seconds: float
    output: str
    memory: dict[str, int]
    """Peak anonymous bytes of one process, by what it is: "config" builds upstream's config object, "copy" the rest."""


def measure(command: list[str]) -> Measured:
    """Run it to its end. RuntimeError with what it printed where it fails."""
    started = time.monotonic()
    peaks: dict[str, int] = {}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        watcher = threading.Thread(target=_watch, args=(process, peaks))
        watcher.start()
        output, errors = process.communicate()
        seconds = time.monotonic() - started
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}:\n{output[-2000:]}{errors}")
    return Measured(seconds=seconds, output=output, memory=peaks)


def _watch(process: "subprocess.Popen[str]", peaks: dict[str, int]) -> None:
    while process.returncode is None:
        for member in _tree(process.pid):
            role = _role(member)
            peaks[role] = max(peaks.get(role, 0), _anonymous_bytes(member.pid))
        time.sleep(_SAMPLE_SECONDS)


def _tree(root: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _role(process: psutil.Process) -> str:
    try:
        return "config" if "model-config" in process.cmdline() else "copy"
    except psutil.Error:
        return "copy"


def _anonymous_bytes(pid: int) -> int:
    """RssAnon: what the process holds beyond files, which the kernel can drop."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
