"""A merge through the service: submitted by the command line, cut into parts, its report in the manifest."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.acceptance.service import Service
from tests.llama_folder import write_llama
from tests.peft_here import adapted, merged, write_adapter

pytestmark = pytest.mark.slow


def test_a_merge_by_the_service_is_pefts(make_service: Callable[..., Service], tmp_path: Path) -> None:
    service = make_service()
    write_llama(service.root / "base", layers=4, hidden=128)
    pair = [
        write_adapter(service.root / "base", service.root / f"a{n}", n, target_modules="all-linear") for n in (0, 1)
    ]
    adapters = ("--adapter", "a0", "--adapter", "data:a1:0.5", "--combine", "cat")
    command = ("merge", "base", "merged", *adapters, "--part-bytes", "1MiB")

    done = subprocess.run(
        [sys.executable, "-P", "-c", "from api.cli import main; main()", *command],
        capture_output=True,
        text=True,
        env=os.environ | {"FERRY_URL": service.url},
        cwd=service.root,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert "28 touched" in done.stdout
    model = adapted(service.root / "base", pair)
    model.add_weighted_adapter(["a0", "a1"], [1.0, 0.5], "both", combination_type="cat")
    theirs = merged(model, ["both"])
    for name, tensor in load_file(service.root / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor.double(), theirs[name], rtol=2e-6, atol=2e-6)
    assert len(json.loads((service.root / "merged" / "manifest.json").read_text())["touched"]) == 28
