"""The Python client against a real server with an in-memory store."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from api.app import create_app
from api.client import Client
from api.settings import ApiSettings
from worker.jobs.errors import ConflictError, NotFoundError, UnavailableError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.spec import ConfigSpec, ImportSpec
from worker.jobs.state import ConfigResult, Job
from worker.jobs.store import Done


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def server(store: MemoryStore, tmp_path: Path) -> Iterator[uvicorn.Server]:
    (tmp_path / "hf").mkdir()
    app = create_app(ApiSettings(broker_url="redis://unused", roots={"data": tmp_path}), store)
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running
    running.should_exit = True
    thread.join()


@pytest.fixture
def client(server: uvicorn.Server) -> Iterator[Client]:
    port = server.servers[0].sockets[0].getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client:
        yield client


CONFIG = ConfigSpec(source="data:hf")
IMPORT = ImportSpec(source="data:hf", target="data:out")


def test_a_submitted_job_can_be_looked_at_listed_and_cancelled(client: Client) -> None:
    job = client.submit(CONFIG, labels={"team": "a"})

    assert client.get(job.id) == job
    assert [listed.id for listed in client.list(label="team:a")] == [job.id]
    assert client.cancel(job.id).state.state == "cancelled"


def test_listing_goes_on_over_pages_up_to_its_limit(client: Client) -> None:
    ids = [client.submit(CONFIG).id for _ in range(7)]

    assert [job.id for job in client.list(limit=3)] == ids[:-4:-1]
    assert len(list(client.list())) == 7


def test_waiting_shows_every_step_and_ends_with_the_result(client: Client, store: MemoryStore) -> None:
    job = client.submit(CONFIG)
    seen: list[str] = []

    def work() -> None:
        claim = store.claim(job.id, "w", lease_seconds=10)
        assert claim is not None
        time.sleep(0.3)
        store.settle(claim, Done(result=ConfigResult(megatron_config={"a": 1})))

    def look(now: Job) -> None:
        seen.append(now.state.state)

    worker = threading.Timer(0.2, work)
    worker.start()
    ended = client.wait(job.id, look)
    worker.join()

    assert ended.state.state == "succeeded"
    assert list(dict.fromkeys(seen)) == ["queued", "running", "succeeded"]


def test_the_servers_errors_arrive_as_the_same_classes(client: Client) -> None:
    client.submit(IMPORT)

    with pytest.raises(ConflictError) as refused:
        client.submit(IMPORT)
    with pytest.raises(NotFoundError):
        client.get("job_unknown")

    assert refused.value.info.code == "target_reserved"


def test_a_server_that_is_not_there_is_named_with_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"

    with Client(url) as client, pytest.raises(UnavailableError) as refused:
        client.submit(CONFIG)

    assert url in refused.value.info.thing
    assert "ferry up" in refused.value.info.next_step
