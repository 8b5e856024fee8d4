"""Fixtures that several rooms of tests share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis

from worker.dispatch.embedded_broker import EmbeddedBroker, start_embedded_broker

# A machine that does other things too is no fault of ours.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the families' tests prove is recorded on request; `ferry families` shows the record."""
    parser.addoption("--record-proofs", action="store_true", help="write worker/mapping/proofs.json")


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[EmbeddedBroker]:
    """A real Valkey server for the whole run; use `broker`, which empties it first."""
    data = Path(tempfile.mkdtemp(prefix="ferry-test-"))
    with (data / "broker.log").open("wb") as log:
        running = start_embedded_broker(data, log)
    yield running
    running.process.kill()
    running.process.wait()
    shutil.rmtree(data)


@pytest.fixture
def broker(shared_broker: EmbeddedBroker) -> EmbeddedBroker:
    """A real, empty Valkey server."""
    with Redis(unix_socket_path=shared_broker.url.removeprefix("redis+socket://")) as client:
        client.flushall()
    return shared_broker
