"""A setup through the service: fields from YAML and from the command line, and again without a copy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.acceptance.service import Service
from tests.llama_folder import write_llama

pytestmark = pytest.mark.slow


def test_a_setup_by_the_service_and_its_repetition(make_service: Callable[..., Service]) -> None:
    service = make_service()
    write_llama(service.root / "base", layers=4, hidden=128)
    (service.root / "run.yaml").write_text(
        "profile: verl\nparallelism: {tp_size: 4, pp_size: 2}\nsequence_length: 64\ndtype: bf16\n"
    )

    def ferry(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from api.cli import main; main()", "setup", "base", "run", *command],
            capture_output=True,
            text=True,
            env=os.environ | {"FERRY_URL": service.url},
            cwd=service.root,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    plan = json.loads(ferry("--spec", "run.yaml", "--tp", "2", "--plan"))
    ferry("--spec", "run.yaml", "--tp", "2")
    told = ferry("--spec", "run.yaml", "--profile", "slime", "--reuse")

    assert plan["setup"]["parallelism"]["tp_size"] == 2
    assert plan["setup"]["parallelism"]["world_size"] == 4
    assert "0 B copied" in told
    arguments = (service.root / "run" / "slime_arguments.txt").read_text()
    assert f"--ref-load {service.root / 'run'}\n" in arguments
    assert "--tensor-model-parallel-size 4\n" in arguments
    assert not (service.root / "run" / "verl_overrides.txt").exists()
