"""The Python client against a real server with an in-memory store."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.client import Client
from tests.unit.server import FerryServer
from worker.jobs.errors import ConflictError, ErrorInfo, FerryError, InternalError, NotFoundError, UnavailableError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import AdapterExportSpec, ConfigSpec, ImportSpec, JobRequest, JobSpec, VerifySpec
from worker.jobs.state import ConfigResult, Job
from worker.jobs.store import Done, JobPage
from worker.jobs.store_errors import newer_record

CONFIG = ConfigSpec(source="data:hf")
IMPORT = ImportSpec(source="data:hf", target="data:out")


@pytest.fixture
def client(server: FerryServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def do(store: MemoryStore, job_id: str, *, seconds: float = 0.0) -> None:
    """What a worker does with a config job."""
    claim = store.claim(job_id, WorkerSlot(worker_id="w", host="h"), lease_seconds=10)
    assert claim is not None
    time.sleep(seconds)
    store.settle(claim, Done(result=ConfigResult(megatron_config={"a": 1})))


def unavailable() -> UnavailableError:
    return UnavailableError("store_unavailable", "the store", found="nobody", expected="an answer", next_step="Wait.")


def test_a_submitted_job_can_be_looked_at_listed_and_cancelled(client: Client) -> None:
    job = client.submit(CONFIG, labels={"team": "a"})

    assert client.get(job.id) == job
    assert [listed.id for listed in client.list(label="team:a")] == [job.id]
    assert client.cancel(job.id).state.state == "cancelled"


def test_listing_goes_on_over_pages_up_to_its_limit(client: Client) -> None:
    ids = [client.submit(CONFIG).id for _ in range(52)]

    assert [job.id for job in client.list(limit=3)] == ids[:-4:-1]
    assert [job.id for job in client.list()] == ids[::-1]


def test_a_job_that_the_server_cannot_read_is_said_and_the_others_listed(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = client.submit(CONFIG)
    left_out = newer_record("job_0", 9, 3).info
    monkeypatch.setattr(
        MemoryStore, "list", lambda *_, **__: JobPage(jobs=(job,), next_cursor=None, unreadable=(left_out,))
    )
    heard: list[ErrorInfo] = []

    assert [listed.id for listed in client.list(on_unreadable=heard.append)] == [job.id]
    assert heard == [left_out]
    assert caplog.text == ""
    assert [listed.id for listed in client.list()] == [job.id]
    assert "job_0" in caplog.text


@pytest.mark.parametrize(
    "spec",
    [
        CONFIG,
        IMPORT,
        IMPORT.model_copy(update={"layer_keys": "per-layer"}),
        AdapterExportSpec(source="data:adapter", target="data:out"),
        VerifySpec(source="data:a", against="data:b"),
    ],
)
def test_what_is_left_at_its_default_is_not_sent(spec: JobSpec) -> None:
    sent: list[bytes] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        sent.append(request.content)
        return httpx.Response(500)

    with Client("http://server", transport=httpx.MockTransport(refuse)) as client, pytest.raises(FerryError):
        client.submit(spec, priority="high")

    body = json.loads(sent[0])
    assert JobRequest.model_validate(body) == JobRequest(spec=spec, priority="high")
    assert ("layer_keys" in body["spec"]) == (getattr(spec, "layer_keys", "stacked") != "stacked")
    assert "on_exists" not in body["spec"]
    assert "gpus" not in body


def test_waiting_shows_every_step_and_ends_with_the_result(client: Client, store: MemoryStore) -> None:
    job = client.submit(CONFIG)
    seen: list[str] = []

    def look(now: Job) -> None:
        seen.append(now.state.state)

    worker = threading.Timer(0.2, do, (store, job.id), {"seconds": 0.3})
    worker.start()
    ended = client.wait(job.id, look)
    worker.join()

    assert ended.state.state == "succeeded"
    assert list(dict.fromkeys(seen)) == ["queued", "running", "succeeded"]


def test_waiting_outlasts_a_restart_of_the_server(client: Client, server: FerryServer, store: MemoryStore) -> None:
    job = client.submit(CONFIG)
    server.stop()

    def come_back() -> None:
        do(store, job.id)
        server.start()

    restart = threading.Timer(0.5, come_back)
    restart.start()
    ended = client.wait(job.id)
    restart.join()

    assert ended.state.state == "succeeded"


def test_waiting_outlasts_a_restart_of_the_store(
    client: Client, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.submit(CONFIG)
    do(store, job.id)
    get, answers = MemoryStore.get, [unavailable(), unavailable()]

    def get_in_the_end(store: MemoryStore, job_id: str) -> Job:
        if answers:
            raise answers.pop()
        return get(store, job_id)

    monkeypatch.setattr(MemoryStore, "get", get_in_the_end)

    assert client.wait(job.id).state.state == "succeeded"
    assert answers == []


class LosesTheFirstAnswer(httpx.HTTPTransport):
    """The server takes the request; the connection breaks before its answer is here."""

    lost = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if self.lost == 0:
            self.lost += 1
            response.read()
            raise httpx.ReadError("connection reset")
        return response


def test_a_job_whose_answer_was_lost_is_accepted_once(server: FerryServer) -> None:
    with Client(server.url, transport=LosesTheFirstAnswer()) as client:
        job = client.submit(IMPORT)

        assert [listed.id for listed in client.list()] == [job.id]


def test_the_servers_errors_arrive_as_the_same_classes(client: Client) -> None:
    client.submit(IMPORT)

    with pytest.raises(ConflictError) as refused:
        client.submit(IMPORT)
    with pytest.raises(NotFoundError):
        client.get("job_unknown")

    assert refused.value.info.code == "target_reserved"


@pytest.mark.parametrize("job_id", ["../health", "a?b=c", "a#b"])
def test_what_is_no_job_id_asks_for_nothing_else(client: Client, job_id: str) -> None:
    with pytest.raises(NotFoundError):
        client.get(job_id)


@pytest.mark.parametrize("ask", [lambda client: client.submit(CONFIG), lambda client: client.wait("job_1")])
def test_a_server_that_is_not_there_is_named_at_once_with_what_to_do(ask: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    asked = time.monotonic()

    with Client(url) as client, pytest.raises(UnavailableError) as refused:
        ask(client)

    assert time.monotonic() - asked < 5
    assert url in refused.value.info.thing
    assert "ferry up" in refused.value.info.next_step


@pytest.mark.parametrize("url", ["nowhere", "ftp://127.0.0.1"])
def test_a_url_that_no_server_can_have_is_named(url: str) -> None:
    with Client(url) as client, pytest.raises(UnavailableError) as refused:
        client.get("job_1")

    assert url in refused.value.info.thing


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>welcome</html>"),
        httpx.Response(200, json={"a": 1}),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(404, json=["not", "a", "problem"]),
        httpx.Response(302, headers={"Location": "/login"}),
    ],
    ids=["page", "other json", "proxy", "other error", "redirect"],
)
def test_another_servers_answer_is_an_error_that_names_the_url(answer: httpx.Response) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        return answer

    with Client("http://elsewhere", transport=httpx.MockTransport(respond)) as client:
        for ask in (lambda: client.get("job_1"), lambda: next(client.list())):
            with pytest.raises(FerryError) as refused:
                ask()
            assert isinstance(refused.value, InternalError)
            assert "http://elsewhere" in refused.value.info.thing
