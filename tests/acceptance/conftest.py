"""The service as a user starts it, and a real model."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api.client import Client
from tests.acceptance.service import Service

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as an HF folder; the demo shares it."""
    sys.path.insert(0, str(PROJECT / "ops"))
    from smollm2 import make_smollm2

    (PROJECT / "demo-data").mkdir(exist_ok=True)
    return make_smollm2(PROJECT / "demo-data" / "smollm2-hf")


@pytest.fixture
def make_service() -> Iterator[Callable[..., Service]]:
    """Services with their own settings, ended and removed after the test."""
    made: list[Service] = []

    def make(**environment: str) -> Service:
        folder = Path(tempfile.mkdtemp(prefix="ferry-acceptance-"))
        (folder / "root").mkdir()
        service = Service(folder=folder, environment=environment)
        made.append(service)
        service.start()
        return service

    yield make
    for service in made:
        service.stop()
        shutil.rmtree(service.folder)


@pytest.fixture
def clients() -> Iterator[Callable[[Service], Client]]:
    """Clients that are closed after the test."""
    made: list[Client] = []

    def make(service: Service) -> Client:
        made.append(Client(service.url))
        return made[-1]

    yield make
    for client in made:
        client.close()
