"""The HTTP API over an in-memory store: what it accepts, what it answers, how it says no."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.types import Message

from api.app import create_app
from api.body_limit import MAX_BODY_BYTES
from api.settings import ApiSettings
from worker.jobs.errors import UnavailableError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.misreading import UNFORESEEN, Misreading
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    ConfigSpec,
    ExportSpec,
    ImportSpec,
    JobKind,
    MergeSpec,
    SetupSpec,
    VerifySpec,
)
from worker.jobs.state import Progress
from worker.jobs.store import JobFilter, Stopped

PROBLEM = "application/problem+json"
SPECS = (
    *(ConfigSpec, ImportSpec, ExportSpec, MergeSpec, SetupSpec, VerifySpec),
    *(AdapterExportSpec, AdapterImportSpec, AdapterExtractSpec),
)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def app(store: MemoryStore, tmp_path: Path) -> FastAPI:
    (tmp_path / "hf").mkdir()
    (tmp_path / "file").touch()
    return create_app(ApiSettings(broker_url="redis://unused", roots={"data": tmp_path}), store)


@pytest.fixture
def http(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def body(**spec: object) -> dict[str, Any]:
    return {"spec": {"kind": "import", "source": "data:hf", "target": "data:mcore", **spec}}


def test_an_accepted_job_is_answered_with_its_place(http: TestClient) -> None:
    answer = http.post("/v1/jobs", json=body() | {"labels": {"team": "a"}})

    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert "retry-after" in answer.headers
    waiting = {"reason": "slot", "resource_class": "cpu", "position": 1, "slots": 0}
    assert job["state"] == {"state": "queued", "waiting": waiting, "not_before": None, "last_error": None}
    assert http.get(answer.headers["location"]).json() == job


def test_ids_sort_by_time(http: TestClient) -> None:
    ids = [http.post("/v1/jobs", json=body(target=f"data:out{n}")).json()["id"] for n in range(3)]

    assert len(set(ids)) == 3
    assert [key[:16] for key in ids] == sorted(key[:16] for key in ids)


def test_the_same_key_and_request_answer_the_same_job_even_when_its_target_is_there(
    http: TestClient, tmp_path: Path
) -> None:
    first = http.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k"}).json()
    (tmp_path / "mcore").mkdir()

    again = http.post("/v1/jobs", json=body(), headers={"Idempotency-Key": "k"})

    assert (again.status_code, again.json()["id"]) == (202, first["id"])


def conflict_of_keys(http: TestClient, folder: Path) -> None:
    http.post("/v1/jobs", json=body(target="data:one"), headers={"Idempotency-Key": "k"})


def reservation(http: TestClient, folder: Path) -> None:
    http.post("/v1/jobs", json=body(target="data:mcore"))


def existing(http: TestClient, folder: Path) -> None:
    (folder / "mcore").mkdir()


def nothing(http: TestClient, folder: Path) -> None:
    pass


def spec(kind: str, **fields: object) -> dict[str, Any]:
    target = {} if kind == "verify" else {"target": "data:out"}
    more = {"adapters": [{"path": "data:hf"}]} if kind == "merge" else {}
    return {"kind": kind, "source": "data:hf", **target, **more, **fields}


UNUSED = (
    (spec("verify", logits=True), "logits"),
    (spec("verify", against="data:hf", logits_tolerance=0.1), "logits_tolerance"),
    (spec("verify", against="data:hf", least_top1=0.1), "least_top1"),
    (spec("verify", hf_config="data:hf"), "hf_config"),
    (spec("merge", majority_sign_method="frequency"), "majority_sign_method"),
    (spec("merge", combine="ties", density=0.5, seed=3), "seed"),
    (spec("merge", to="megatron", max_shard_bytes=10**9), "max_shard_bytes"),
    (spec("merge", rounding="peft", verify=["logits"]), "verify"),
    (spec("setup", init="random", base="link"), "base"),
    (spec("setup", init="random", hf_config="data:hf"), "hf_config"),
    (spec("setup", base="import", hf_config="data:hf"), "hf_config"),
    (spec("setup", base="reference", dtype="bf16"), "dtype"),
)
"""Options that the job would ignore, and which."""

MISSING = (
    (spec("export", hf_config="data:none"), "hf_config"),
    (spec("merge", adapters=[{"path": "data:none"}]), "adapter"),
    (spec("adapter", action="import", base="data:none"), "base"),
    (spec("adapter", action="extract", tuned="data:none", rank=4), "tuned"),
    (spec("verify", against="data:none"), "against"),
)


@pytest.mark.parametrize(
    ("before", "request_body", "status", "code", "named"),
    [
        (nothing, body(kind="unheard"), 422, "bad_request", "spec"),
        (nothing, body(surprise=1), 422, "bad_request", "surprise"),
        (nothing, {"spec": {"kind": "import", "source": "data:hf"}}, 422, "bad_request", "target"),
        (nothing, body(source="data:none"), 422, "missing_file", "data:none"),
        (nothing, body(source="data:file"), 422, "missing_file", "data:file"),
        (nothing, body(source="data:file/x"), 422, "bad_location", "data:file/x"),
        (nothing, body(source=f"data:{'a' * 300}"), 422, "bad_location", "aaa"),
        (nothing, body(target=f"data:{'a' * 300}"), 422, "bad_location", "aaa"),
        (nothing, body(kind="export", hf_config="data:none"), 422, "missing_file", "data:none"),
        (nothing, body(kind="export", hf_config="/etc"), 422, "bad_location", "/etc"),
        (nothing, body(kind="merge", adapters=[{"path": "data:none"}]), 422, "missing_file", "data:none"),
        (nothing, body(kind="merge", adapters=[{"path": "/etc"}]), 422, "bad_location", "/etc"),
        (nothing, body(kind="merge", adapters=[]), 422, "bad_request", "adapters"),
        (nothing, body(kind="adapter"), 422, "bad_request", "spec.action"),
        (nothing, body(kind="adapter", action="import"), 422, "bad_request", "base"),
        (nothing, body(kind="adapter", action="import", base="data:none"), 422, "missing_file", "data:none"),
        (nothing, body(kind="adapter", action="export", base="/etc"), 422, "bad_location", "/etc"),
        (nothing, body(kind="adapter", action="extract", tuned="data:none", rank=4), 422, "missing_file", "data:none"),
        (nothing, body(kind="adapter", action="extract", tuned="data:none", rank=0), 422, "bad_request", "rank"),
        (nothing, body(source="data:../x"), 422, "bad_location", "data:../x"),
        (nothing, body(target="/etc/mcore"), 422, "bad_location", "/etc/mcore"),
        (existing, body(), 409, "target_exists", "mcore"),
        (nothing, body(target="data:file", on_exists="replace"), 409, "target_exists", "file"),
        *((nothing, {"spec": spec}, 422, "bad_request", f"spec field {named}") for spec, named in UNUSED),
        *((nothing, {"spec": spec}, 422, "missing_file", f"{named} data:none") for spec, named in MISSING),
        (reservation, body(target="data:./mcore"), 409, "target_reserved", "mcore"),
        (conflict_of_keys, body(), 409, "idempotency_mismatch", "k"),
    ],
)
def test_a_request_that_cannot_be_taken_is_a_problem_document(
    http: TestClient,
    tmp_path: Path,
    before: Callable[[TestClient, Path], None],
    request_body: dict[str, Any],
    status: int,
    code: str,
    named: str,
) -> None:
    before(http, tmp_path)

    answer = http.post("/v1/jobs", json=request_body, headers={"Idempotency-Key": "k"})

    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert answer.headers["content-type"] == PROBLEM
    assert named in problem["thing"]
    assert all(problem[field] for field in ("type", "title", "detail", "found", "expected", "next_step"))


@pytest.mark.parametrize(
    ("request_body", "thing", "found", "expected"),
    [
        (body(kind="unheard"), "request field spec.kind", "'unheard'", "one of config, import, export, merge, setup"),
        ({"spec": {"source": "data:hf"}}, "request field spec.kind", "nothing", "one of config, import"),
        (body(kind="adapter"), "request field spec.action", "nothing", "one of export, import, extract"),
        ({}, "request field spec", "nothing", "a value"),
        (body(surprise=1), "request field spec.surprise", "a field of no such name", "dtype, iteration, kind"),
        (body() | {"labls": {}}, "request field labls", "a field of no such name", "depends_on, gpus, labels"),
        (body() | {"gpus": True}, "request field gpus", "true", "a whole number"),
        (body() | {"gpus": "2"}, "request field gpus", "'2'", "a whole number"),
        (body() | {"priority": "top"}, "request field priority", "'top'", "'low', 'normal' or 'high'"),
        (body() | {"memory_bytes": 5}, "request field memory_bytes", "5", "a number of at least 67,108,864"),
        (body(source=None), "request field spec.source", "null", "text"),
        (body(source="a\nb"), "request field spec.source", "'a\\nb'", "text without control characters"),
        (body(kind="export", max_shard_bytes=1), "spec field max_shard_bytes", "1", "at least 16,384"),
        (body(kind="export", max_shard_bytes=0), "request field spec.max_shard_bytes", "0", "above 0"),
        (
            body(kind="setup", parallelism={"tp_size": True}),
            "request field spec.parallelism.tp_size",
            "true",
            "a whole number",
        ),
        (
            body(kind="setup", parallelism={"tp": 2}),
            "request field spec.parallelism.tp",
            "a field of no such name",
            "tp_size",
        ),
        (
            body(kind="merge", adapters=[{"path": "data:hf"}, {"path": "data:hf", "wait": 1}]),
            "request field spec.adapters.1.wait",
            "a field of no such name",
            "one of path, weight",
        ),
        (body(kind="merge", adapters=[{"path": "a"}], density=0.5), "request field spec.density", "0.5", "ties"),
        ([], "request body", "[]", "a JSON object"),
    ],
)
def test_what_cannot_be_read_is_told_in_our_words(
    http: TestClient, request_body: dict[str, Any], thing: str, found: str, expected: str
) -> None:
    problem = http.post("/v1/jobs", json=request_body).json()

    assert (problem["status"], problem["code"], problem["thing"]) == (422, "bad_request", thing)
    assert found in problem["found"]
    assert expected in problem["expected"]


@pytest.mark.parametrize(
    ("text", "thing", "found"),
    [
        (b"{'a'", "request body", "no valid JSON"),
        (b'{"spec": ', "request body", "no valid JSON"),
        (b"", "request body", "nothing"),
        (json.dumps(body(kind="verify", against="data:hf", logits_tolerance=float("nan"))), "tolerance", "nan"),
        (json.dumps(body(kind="setup", ddp={"overrides": {"a": [float("nan")]}})), "spec.ddp.overrides", "nan"),
        (json.dumps(body(kind="setup", ddp={"overrides": {"a": float("inf")}})), "spec.ddp.overrides", "inf"),
    ],
)
def test_what_is_no_json_is_told_in_our_words(http: TestClient, text: bytes | str, thing: str, found: str) -> None:
    answer = http.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "bad_request")
    assert thing in problem["thing"]
    assert found in problem["found"]


def test_a_near_miss_is_named(http: TestClient) -> None:
    problem = http.post("/v1/jobs", json=body(interation=3)).json()

    assert problem["next_step"].startswith("Did you mean 'iteration'?")


ODD = (
    None,
    True,
    -1,
    1.5,
    10**40,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a\nb",
    "x" * 5000,
    [],
    ["x"] * 200,
    {},
    {1: 1},
)
PYDANTIC = (
    "Input should",
    "Field required",
    "Extra inputs",
    "Value error",
    "String should",
    "Unable to",
    "Keys should",
)


@pytest.mark.parametrize("kind", get_args(JobKind))
def test_no_field_is_refused_in_pydantics_words(kind: str) -> None:
    models = {model.__name__: model for model in SPECS if get_args(model.model_fields["kind"].annotation) == (kind,)}
    values = ((model, name, odd) for model in models.values() for name in model.model_fields for odd in ODD)

    for model, name, odd in values:
        try:
            model.model_validate({"source": "a", "target": "b", "rank": 1, name: odd})
        except ValidationError as error:
            for one in error.errors():
                read = Misreading.of(one, one["loc"], model)
                assert read.expected != UNFORESEEN, (name, odd, one)
                assert not any(words in f"{read.found} {read.expected}" for words in PYDANTIC), (name, odd, one)


def test_a_reserved_target_names_the_job_that_holds_it(http: TestClient) -> None:
    first = http.post("/v1/jobs", json=body()).json()["id"]

    assert first in http.post("/v1/jobs", json=body()).json()["found"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/jobs/job_unknown", 404, "job_not_found"),
        ("POST", "/v1/jobs/job_unknown/cancel", 404, "job_not_found"),
        ("GET", "/nowhere", 404, "bad_request"),
        ("DELETE", "/v1/jobs", 405, "bad_request"),
        ("GET", "/v1/jobs?label=nocolon", 422, "bad_request"),
        ("GET", "/v1/jobs?cursor=nonsense", 422, "bad_request"),
        ("GET", "/v1/jobs?limit=0", 422, "bad_request"),
        ("GET", "/v1/jobs?state=unheard", 422, "bad_request"),
    ],
)
def test_every_no_is_a_problem_document(http: TestClient, method: str, path: str, status: int, code: str) -> None:
    answer = http.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == PROBLEM


def test_a_body_that_is_no_json_is_a_problem_document(http: TestClient) -> None:
    answer = http.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_request")


def test_a_body_of_another_type_is_refused_with_the_header_to_send(http: TestClient) -> None:
    answer = http.post("/v1/jobs", content=b'{"spec": {}}', headers={"Content-Type": "text/plain"})

    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)
    assert (answer.json()["found"], answer.json()["expected"]) == ("text/plain", "application/json")


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_too_long_is_refused_whatever_its_declared_length(http: TestClient, declared: bool) -> None:
    content = b" " * (MAX_BODY_BYTES + 1)

    answer = http.post(
        "/v1/jobs",
        content=content if declared else iter([content]),
        headers={"Content-Type": "application/json"},
    )

    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)


class BrokenStore(MemoryStore):
    def ping(self) -> None:
        raise UnavailableError("store_unavailable", "the store", found="no", expected="yes", next_step="wait")

    def list(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("a bug")


def test_an_unforeseen_error_shows_no_traceback(tmp_path: Path) -> None:
    app = create_app(ApiSettings(broker_url="redis://unused", roots={"data": tmp_path}), BrokenStore())

    answer = TestClient(app, raise_server_exceptions=False).get("/v1/jobs")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "a bug" not in answer.text


def test_readiness_follows_the_store(http: TestClient, tmp_path: Path) -> None:
    app = create_app(ApiSettings(broker_url="redis://unused", roots={"data": tmp_path}), BrokenStore())
    broken = TestClient(app)

    assert http.get("/v1/health/ready").status_code == 200
    assert broken.get("/v1/health").status_code == 200
    answer = broken.get("/v1/health/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert "retry-after" in answer.headers


def test_an_unchanged_job_is_not_sent_again(http: TestClient, store: MemoryStore) -> None:
    job_id = http.post("/v1/jobs", json=body()).json()["id"]
    tag = http.get(f"/v1/jobs/{job_id}").headers["etag"]

    unchanged = http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": f'"older", W/{tag}'})
    store.claim(job_id, WorkerSlot(worker_id="w", host="h"), lease_seconds=10)
    changed = http.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag})

    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert changed.status_code == 200


def test_progress_is_seen_while_a_job_runs(http: TestClient, store: MemoryStore) -> None:
    job_id = http.post("/v1/jobs", json=body()).json()["id"]
    claim = store.claim(job_id, WorkerSlot(worker_id="w", host="h"), lease_seconds=10)
    assert claim is not None

    store.heartbeat(claim, Progress(phase="copying", done_bytes=5, total_bytes=10), lease_seconds=10)

    assert http.get(f"/v1/jobs/{job_id}").json()["state"]["progress"] == {
        "phase": "copying",
        "done_bytes": 5,
        "total_bytes": 10,
    }


def test_jobs_are_listed_newest_first_page_by_page(http: TestClient) -> None:
    ids = [http.post("/v1/jobs", json=body(target=f"data:out{n}")).json()["id"] for n in range(5)]

    first = http.get("/v1/jobs?limit=3").json()
    rest = http.get(f"/v1/jobs?limit=3&cursor={first['next_cursor']}").json()

    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == ids[::-1]
    assert rest["next_cursor"] is None


def test_jobs_are_filtered_by_state_kind_and_label(http: TestClient) -> None:
    http.post("/v1/jobs", json=body())
    labelled = {"spec": {"kind": "config", "source": "data:hf"}, "labels": {"team": "a:b"}}
    job_id = http.post("/v1/jobs", json=labelled).json()["id"]

    for query in ("kind=config", "label=team:a:b", "kind=config&state=queued"):
        assert [job["id"] for job in http.get(f"/v1/jobs?{query}").json()["jobs"]] == [job_id]
    assert http.get("/v1/jobs?state=failed").json()["jobs"] == []


def test_cancelling_is_idempotent_and_leaves_ended_jobs_alone(http: TestClient, store: MemoryStore) -> None:
    waiting, running = (http.post("/v1/jobs", json=body(target=f"data:{n}")).json()["id"] for n in "ab")
    claim = store.claim(running, WorkerSlot(worker_id="w", host="h"), lease_seconds=10)
    assert claim is not None

    answers = [http.post(f"/v1/jobs/{waiting}/cancel") for _ in range(2)]
    asked = http.post(f"/v1/jobs/{running}/cancel")

    assert [(answer.status_code, answer.json()["state"]["state"]) for answer in answers] == [(202, "cancelled")] * 2
    assert asked.json()["state"]["cancel_requested"] is True
    assert store.heartbeat(claim, Progress(), lease_seconds=10) == "cancel"
    assert store.settle(claim, Stopped())


def test_a_failed_job_is_retried_and_keeps_its_history(http: TestClient, store: MemoryStore) -> None:
    job_id = http.post("/v1/jobs", json=body()).json()["id"]
    http.post(f"/v1/jobs/{job_id}/cancel")

    answer = http.post(f"/v1/jobs/{job_id}/retry")

    assert (answer.status_code, answer.json()["state"]["state"]) == (202, "queued")
    events = http.get(f"/v1/jobs/{job_id}/events").json()
    assert [event["event"] for event in events] == ["submitted", "cancelled", "retried"]
    newer = http.get(f"/v1/jobs/{job_id}/events", params={"after": 2}).json()
    assert newer == events[2:]


def test_a_job_whose_target_is_there_is_not_retried(http: TestClient, tmp_path: Path) -> None:
    job_id = http.post("/v1/jobs", json=body(target="data:out")).json()["id"]
    http.post(f"/v1/jobs/{job_id}/cancel")
    (tmp_path / "out").mkdir()

    answer = http.post(f"/v1/jobs/{job_id}/retry")

    assert (answer.status_code, answer.json()["code"]) == (409, "target_exists")


def test_a_target_that_is_there_is_accepted_where_it_is_to_be_replaced(http: TestClient, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    refused = http.post("/v1/jobs", json=body(target="data:out"))
    accepted = http.post("/v1/jobs", json=body(target="data:out", on_exists="replace"))

    assert (refused.status_code, accepted.status_code) == (409, 202)


def test_a_job_may_depend_on_one_that_makes_its_source(http: TestClient) -> None:
    first = http.post("/v1/jobs", json=body(target="data:made")).json()["id"]
    spec = {"kind": "export", "source": "data:made", "target": "data:back"}

    alone = http.post("/v1/jobs", json={"spec": spec})
    after = http.post("/v1/jobs", json={"spec": spec, "depends_on": [first]})

    assert (alone.status_code, alone.json()["code"]) == (422, "missing_file")
    assert after.json()["state"]["waiting"] == {"reason": "dependency", "jobs": [first]}


def test_slots_that_are_alive_are_listed(http: TestClient, store: MemoryStore) -> None:
    store.announce(WorkerSlot(worker_id="w", host="h", gpu="GPU-1"), seconds=60)

    (slot,) = http.get("/v1/slots").json()

    assert (slot["worker_id"], slot["host"], slot["gpu"]) == ("w", "h", "GPU-1")


def test_a_dry_run_of_a_bad_source_is_the_problem_the_job_would_have(http: TestClient) -> None:
    answer = http.post("/v1/jobs?dry_run=true", json=body())

    assert (answer.status_code, answer.json()["code"]) == (422, "missing_file")
    assert "config.json" in answer.json()["thing"]
    assert http.get("/v1/jobs").json()["jobs"] == []


def test_openapi_names_the_problem_documents(http: TestClient) -> None:
    schema = http.get("/openapi.json").json()

    responses = {
        (path, status): set(response["content"])
        for path, operations in schema["paths"].items()
        for operation in operations.values()
        for status, response in operation["responses"].items()
    }
    assert {("/v1/jobs", status) for status in ("202", "409", "413", "422")} <= responses.keys()
    assert all(types == {PROBLEM} for (_, status), types in responses.items() if int(status) >= 400)
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_openapi_examples_are_requests_that_the_api_reads(http: TestClient) -> None:
    operation = http.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]

    examples = operation["requestBody"]["content"]["application/json"]["examples"]

    assert examples.keys() == {"import", "export", "merge", "adapter", "setup", "config", "verify"}
    for example in examples.values():
        assert http.post("/v1/jobs", json=example["value"]).json()["code"] == "bad_location"  # no root `here`


def test_a_request_whose_client_goes_away_in_its_middle_is_no_job(tmp_path: Path, store: MemoryStore) -> None:
    """Even where what came is whole JSON."""
    (tmp_path / "llama").mkdir()
    app = create_app(ApiSettings(broker_url="redis://unused", roots={"data": tmp_path}), store)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"9999")]
    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "query_string": b"", "headers": headers}
    came = json.dumps({"spec": {"kind": "config", "source": "data:llama"}}).encode()
    messages = iter([{"type": "http.request", "body": came, "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        sent.append(message)

    with suppress(Exception):  # the framework's word for a client that is gone
        asyncio.run(app(scope, receive, send))

    assert store.list(JobFilter()).jobs == ()
    assert not any(message.get("status") == 202 for message in sent)
