"""The demo, as its reader sees it the second time."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")  # which puts the model into the cache
def test_the_demo_moves_a_model_there_and_back_and_lets_it_speak(tmp_path: Path) -> None:
    environment = os.environ | {"FERRY_DEMO_DATA": str(tmp_path / "demo")}

    done = subprocess.run(
        [sys.executable, PROJECT / "ops" / "demo.py"], capture_output=True, text=True, env=environment, timeout=240
    )

    assert done.returncode == 0, done.stderr
    assert "272 tensors, every bit the same" in done.stdout
    assert "Paris" in done.stdout
    assert "import: finalizing, 269 MB of 269 MB" in done.stderr
    assert [line for line in done.stdout.splitlines() if line.strip().startswith(str(tmp_path))] != []
    assert [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())] == []
