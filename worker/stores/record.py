"""A job's record in Redis: a hash of flat fields, its parts in JSON, times in milliseconds of the server's clock."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..jobs.errors import ErrorInfo, InternalError
from ..jobs.events import JobEvent
from ..jobs.misreading import Misreading
from ..jobs.spec import JobRequest, resource_class
from ..jobs.state import SCHEMA_VERSION, Job, JobState, Queued
from ..jobs.store import JobFilter, Limits
from ..jobs.store_errors import newer_record, unreadable_record
from ..jobs.waiting import Waiting

_STATE: TypeAdapter[JobState] = TypeAdapter(JobState)
_WAITING: TypeAdapter[Waiting] = TypeAdapter(Waiting)

ALL_JOBS = "ferry:jobs"


def new_fields(request: JobRequest, limits: Limits) -> dict[str, object]:
    """What a new record says beside its id, place and times. The caps stay with the job, whoever runs it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "request": request.model_dump_json(),
        "attempts": 0,
        "class": resource_class(request),
        "priority": request.priority,
        "gpus": request.gpus,
        "depends_on": json.dumps(request.depends_on),
        "max_failures": limits.failures,
        "max_losses": limits.losses,
        "retry_delay_ms": round(limits.retry_delay_seconds * 1000),
    }


def job_of(flat: Sequence[str]) -> Job:
    """The job in a record as HGETALL answers it: field, value, field, value.

    InternalError (`newer_record`, `unreadable_record`) where a newer version wrote it, or none that is known. Versions
    1 and 2 lacked only what has a default today.
    """
    fields = _fields(flat)
    version = int(fields["schema_version"])
    if version > SCHEMA_VERSION:
        raise newer_record(fields["id"], version, SCHEMA_VERSION)
    try:
        return _job(fields, version)
    except ValidationError as error:
        read = Misreading.first_of(error, JobRequest)
        raise unreadable_record(fields["id"], f"{read.found} as {read.field or 'a request'}") from error


def readable(records: Iterable[Sequence[str]]) -> tuple[tuple[Job, ...], tuple[ErrorInfo, ...]]:
    """The jobs in these records, and why there is none in the others."""
    jobs: list[Job] = []
    unreadable: list[ErrorInfo] = []
    for record in records:
        try:
            jobs.append(job_of(record))
        except InternalError as error:
            unreadable.append(error.info)
    return tuple(jobs), tuple(unreadable)


def _job(fields: Mapping[str, str], version: int) -> Job:
    return Job(
        schema_version=version,
        id=fields["id"],
        request=JobRequest.model_validate_json(fields["request"]),
        state=_STATE.validate_python(dict(_state_fields(fields))),
        attempts=int(fields["attempts"]),
        created_at=_seconds(fields["created_at"]),
        updated_at=_seconds(fields["updated_at"]),
    )


def new_job(job_id: str, request: JobRequest, created_at: int, waiting: str) -> Job:
    """The job that was accepted just now."""
    created = _seconds(created_at)
    state = Queued(waiting=_WAITING.validate_json(waiting))
    return Job(id=job_id, request=request, state=state, created_at=created, updated_at=created)


def event_of(text: str) -> JobEvent:
    """The event in a line of the history."""
    fields = json.loads(text)
    return JobEvent.model_validate(fields | {"at": fields["at"] / 1000})


def indexes_of(request: JobRequest) -> list[str]:
    """The sorted sets, beside that of its state, in which a job stands from its first moment."""
    return [_kind_index(request.spec.kind), *(_label_index(*label) for label in request.labels.items())]


def indexes_for(which: JobFilter) -> list[str]:
    """The sorted sets whose intersection a filter asks for."""
    indexes = [
        f"ferry:state:{which.state}" if which.state else None,
        _kind_index(which.kind) if which.kind else None,
        _label_index(*which.label) if which.label else None,
    ]
    return [index for index in indexes if index] or [ALL_JOBS]


def _kind_index(kind: str) -> str:
    return f"ferry:kind:{kind}"


def _label_index(name: str, value: str) -> str:
    return f"ferry:label:{json.dumps([name, value])}"


def _state_fields(fields: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    yield "state", fields["state"]
    for name in ("not_before", "lease_expires_at"):
        if name in fields:
            yield name, _seconds(fields[name])
    for name in ("last_error", "waiting", "progress", "result", "error"):
        if name in fields:
            yield name, json.loads(fields[name])
    if fields["state"] == "running":
        yield "worker_id", fields["worker_id"]
        yield "host", fields.get("host", "")
        yield "devices", json.loads(fields.get("devices", "[]"))
        yield "attempt", int(fields["attempts"])
        yield "started_at", _seconds(fields.get("started_at", fields["updated_at"]))
        yield "cancel_requested", "cancel_requested" in fields
        yield "publishing", "publishing" in fields


def _fields(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _seconds(milliseconds: str | int) -> Any:
    """Pydantic reads seconds since 1970 as an aware time."""
    return float(milliseconds) / 1000
