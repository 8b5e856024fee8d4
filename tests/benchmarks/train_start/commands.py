"""Ferry's command and ranks of a trainer, each a process with its log in a file."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[3]
_FERRY = (sys.executable, "-c", "from api.cli import main; main()")
_SECONDS = 420.0


def ferry(*words: str) -> str:
    """What the command prints. RuntimeError with all that it said where it fails."""
    done = subprocess.run([*_FERRY, *words], cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ferry {' '.join(words)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def planned(*words: str) -> dict[str, Any]:
    """What the command would do."""
    return json.loads(ferry(*words, "--plan"))


def ranks(module: str, count: int, words: list[str], log: Path, settings: Mapping[str, str]) -> str:
    """What `count` ranks of a module print, started by torchrun. RuntimeError with the end of it where one fails."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count))
    meeting = ("--master-addr", "127.0.0.1", "--master-port", str(_free_port()))
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            [*launcher, *meeting, "-m", module, *words],
            cwd=_ROOT,
            env={**os.environ, **settings},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its ranks
            process.wait()
            code = f"none within {_SECONDS:.0f} s"
    text = log.read_text()
    if code:
        lines = text.splitlines()
        first = next((place for place, line in enumerate(lines) if "Traceback" in line), max(0, len(lines) - 60))
        raise RuntimeError(f"{module}: exit code {code}, log {log}\n" + "\n".join(lines[first : first + 40]))
    return text + f"\nran for {time.monotonic() - started:.0f} s\n"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
