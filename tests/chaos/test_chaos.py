"""The chaos in two minutes; `python -m tests.chaos` is the whole of it."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
COMMAND = ["python", "-m", "tests.chaos", "--jobs", "30", "--faults", "20", "--seconds", "75", "--seed", "7"]


@pytest.mark.slow
def test_every_job_ends_once_and_whole_whatever_happens() -> None:
    run = subprocess.run([sys.executable, *COMMAND[1:]], cwd=PROJECT, capture_output=True, text=True, timeout=240)

    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
