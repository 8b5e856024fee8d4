"""A real model, and Ferry as its users start it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops.smollm2 import cached_smollm2
from tests.acceptance.service import Service, running, user_environment

SLOW_COPY = str(60 * 10**6)
"""Bytes a second that make a copy of SmolLM2 last four seconds: time to look, and to kill."""

Ferry = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as an HF folder, made once for this machine; not to be written to."""
    return cached_smollm2()


@pytest.fixture(scope="session")
def service(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service at full speed."""
    with running(smollm2.parent, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module")
def slow_service(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose copies last seconds, and whose lost workers are missed soon."""
    settings = {"FERRY_IO_BYTES_PER_SECOND": SLOW_COPY, "FERRY_LEASE_SECONDS": "2"}
    with running(smollm2.parent, tmp_path_factory.mktemp("slow-service"), **settings) as service:
        yield service


@pytest.fixture(scope="session")
def ferry() -> Ferry:
    """The installed `ferry` command, without a server unless `server` names one."""

    def run(*arguments: object, server: str = "http://127.0.0.1:9") -> "subprocess.CompletedProcess[str]":
        command = [Path(sys.executable).with_name("ferry"), *map(str, arguments)]
        environment = user_environment(FERRY_URL=server)
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    return run
