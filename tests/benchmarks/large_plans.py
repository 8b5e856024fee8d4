"""The largest open models planned from header-only stand-ins: seconds by the clock and of a core, peak memory.

`python -m tests.benchmarks.large_plans [NAME ...]` from the repository's root. Prints; asserts nothing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.large_stand_ins import STAND_INS


def main() -> None:
    """Write each stand-in, plan its import in a process of its own, print a line."""
    parser = argparse.ArgumentParser(prog="large_plans", description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(STAND_INS), metavar="NAME")
    for name in parser.parse_args().names:
        with tempfile.TemporaryDirectory(prefix="ferry-large-") as temporary:
            hf = Path(temporary) / "hf"
            # In a process of its own: a child's peak begins with what its parent holds.
            subprocess.run([sys.executable, "-m", "tests.large_stand_ins", name, str(hf)], check=True)
            seconds, usage, answer = _planned({"kind": "import", "source": str(hf), "target": f"{temporary}/out"})
        busy, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
        print(f"{name:14} {seconds:6.2f} s, {busy:6.2f} s of a core, peak {peak:4.0f} MB: {_said(answer)}", flush=True)


def _planned(spec: dict[str, str]) -> tuple[float, resource.struct_rusage, dict[str, Any]]:
    """(seconds, what it used, its answer) of the whole command."""
    read, write = os.pipe()
    started = time.monotonic()
    command = [sys.executable, "-m", "worker", "plan", json.dumps(spec)]
    child = os.posix_spawn(sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    with os.fdopen(read) as output:
        lines = output.read().splitlines()
    usage = os.wait4(child, 0)[2]
    return time.monotonic() - started, usage, json.loads(lines[-1])


def _said(answer: dict[str, Any]) -> str:
    if "error" in answer:  # a disk that could never hold it, which is what a plan is for
        return f"refused: {answer['error']['expected']}"
    plan = answer["plan"]
    return f"{plan['bytes'] / 1e9:,.0f} GB in {len(plan['parts'])} parts"


if __name__ == "__main__":
    main()
