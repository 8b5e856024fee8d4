"""Processes tied to their parent's life: `python -m worker.dispatch.tied PARENT COMMAND...` becomes COMMAND.

Not `preexec_fn`, which may deadlock in a process with threads. The tie survives exec, so any program can be tied.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..lifeline import die_with_parent

PROJECT = Path(__file__).parents[2]
"""Where `-m worker` is found: started there, no `worker.py` of a trainer's current directory comes first."""


def tied(command: Sequence[str | Path]) -> list[str]:
    """`command` as a child that the kernel kills when the thread that starts it ends, however it ends."""
    return [sys.executable, "-m", "worker.dispatch.tied", str(os.getpid()), *map(str, command)]


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  # a list of words; no shell is wanted
