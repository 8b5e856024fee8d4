"""What the client's and the command line's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.server import FerryServer
from worker.jobs.memory_store import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def server(store: MemoryStore, tmp_path: Path) -> Iterator[FerryServer]:
    """Running; the folder `data:hf` exists."""
    (tmp_path / "hf").mkdir()
    server = FerryServer(store, tmp_path)
    server.start()
    yield server
    server.stop()
