"""The job store in Redis (or Valkey): every transition is one Lua script on the server's clock."""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Self, assert_never

from redis import Redis
from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from ..jobs.cursors import decode_cursor, encode_cursor
from ..jobs.errors import FerryError, UnavailableError
from ..jobs.events import KEPT_EVENTS, JobEvent
from ..jobs.parts import PartClaim, Parts
from ..jobs.queues import AMQP_PRIORITY, queue_of
from ..jobs.slots import WorkerSlot
from ..jobs.spec import JobRequest, Priority
from ..jobs.state import SCHEMA_VERSION, Job, Progress, Running
from ..jobs.store import (
    KEEP_PARTIALS_SECONDS,
    RETENTION_SECONDS,
    Broken,
    Claim,
    Done,
    JobFilter,
    JobPage,
    Limits,
    Lost,
    Outcome,
    Postponed,
    Returned,
    Stopped,
    Unclean,
    Verdict,
    WakeUp,
)
from ..jobs.store_errors import (
    dependency_ended,
    idempotency_mismatch,
    job_not_found,
    lease_lost,
    not_retryable,
    target_reserved,
    unknown_dependency,
)
from .celery_message import wake_up_template
from .connection import connect
from .record import event_of, indexes_for, indexes_of, job_of, new_fields, new_job, readable
from .scripts import Scripts

_REAPED_AT_ONCE = 100
_LOOKED_AT = 1_000
"""Ids that one page of a filtered list looks at, at most."""
_LOOK_AGAIN_SECONDS = 1.0
"""How soon a job that found too few free GPUs asks again."""


class RedisStore:
    """Holds the truth about jobs, and sends the Celery messages that wake workers.

    A message that left the queue `patience_seconds` ago without a claim is taken for lost, and sent again. Without
    `sends_messages`, another broker carries them: whoever drains `take_wake_ups` sends them. Terminal jobs are
    forgotten after `retention_seconds`; what their attempts left half written is kept for `keep_partials_seconds`.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        limits: Limits | None = None,
        patience_seconds: float = 10.0,
        retention_seconds: float = RETENTION_SECONDS,
        keep_partials_seconds: float = KEEP_PARTIALS_SECONDS,
        sends_messages: bool = True,
    ) -> None:
        self._redis = redis
        self._limits = limits or Limits()
        self._patience_ms = _milliseconds(patience_seconds)
        self._retention_ms = _milliseconds(retention_seconds)
        self._keep_partials_ms = _milliseconds(keep_partials_seconds)
        self._scripts = Scripts(redis)
        self._constants = {
            "schema_version": SCHEMA_VERSION,
            "kept_events": KEPT_EVENTS,
            "message": wake_up_template() if sends_messages else None,
            "lost": lease_lost().model_dump_json(),
            "dependency_failed": dependency_ended("@job@").info.model_dump_json(),
        }

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        limits: Limits | None = None,
        patience_seconds: float = 10.0,
        retention_seconds: float = RETENTION_SECONDS,
        keep_partials_seconds: float = KEEP_PARTIALS_SECONDS,
        sends_messages: bool = True,
    ) -> Self:
        """A store on the server at `url`; connects with the first call."""
        return cls(
            connect(url),
            limits=limits,
            patience_seconds=patience_seconds,
            retention_seconds=retention_seconds,
            keep_partials_seconds=keep_partials_seconds,
            sends_messages=sends_messages,
        )

    def submit(
        self, job_id: str, request: JobRequest, *, target: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        answer, found = self._run(
            "submit",
            id=job_id,
            target=target,
            idempotency_key=idempotency_key,
            depends_on=request.depends_on,
            fields=new_fields(request, self._limits),
            indexes=indexes_of(request),
        )
        match answer:
            case "reserved":
                raise target_reserved(str(target), found)
            case "unknown" | "ended":
                raise _dependency_error(answer, found)
            case "new":
                created_at, waiting = found
                return new_job(job_id, request, int(created_at), waiting)
            case _:
                return _same_request(job_of(found), request, idempotency_key or job_id)

    def find(self, idempotency_key: str, request: JobRequest) -> Job | None:
        found = self._run("find", idempotency_key=idempotency_key)
        return _same_request(job_of(found), request, idempotency_key) if found else None

    def get(self, job_id: str) -> Job:
        return self._existing(job_id, self._run("get", id=job_id))

    def list(self, which: JobFilter, *, cursor: str | None = None, limit: int = 50) -> JobPage:
        indexes = indexes_for(which)
        last, *records = self._run(
            "list",
            indexes=indexes,
            before=decode_cursor(cursor) if cursor else None,
            limit=limit,
            look_at=limit + 1 if len(indexes) == 1 else max(limit + 1, _LOOKED_AT),
        )
        jobs, unreadable = readable(records)
        return JobPage(jobs=jobs, next_cursor=encode_cursor(int(last)) if last else None, unreadable=unreadable)

    def events(self, job_id: str, *, after: int = 0) -> tuple[JobEvent, ...]:
        found = self._run("events", id=job_id, after=after)
        if found is None:
            raise job_not_found(job_id)
        return tuple(map(event_of, found))

    def cancel(self, job_id: str) -> Job:
        return self._existing(job_id, self._run("cancel", id=job_id))

    def retry(self, job_id: str) -> Job:
        answer, found = self._run("retry", id=job_id)
        match answer:
            case "reserved":
                raise target_reserved(*found)
            case "unknown" | "ended":
                raise _dependency_error(answer, found)
            case "state":
                raise not_retryable(job_id, job_of(found).state.state)
            case _:
                return self._existing(job_id, found)

    def claim(self, job_id: str, slot: WorkerSlot, *, lease_seconds: float) -> Claim | None:
        record = self._run(
            "claim",
            id=job_id,
            slot=slot.model_dump(),
            lease_ms=_milliseconds(lease_seconds),
            progress=Progress().model_dump_json(),
            look_again_ms=_milliseconds(_LOOK_AGAIN_SECONDS),
        )
        if not record:
            return None
        job = job_of(record)
        assert isinstance(job.state, Running)
        return Claim(job=job, fence=job.attempts, slot=slot, devices=job.state.devices)

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        return self._run(
            "heartbeat",
            id=claim.job.id,
            fence=claim.fence,
            lease_ms=_milliseconds(lease_seconds),
            progress=progress.model_dump_json(),
        )

    def reserve_disk(self, claim: Claim, filesystem: str, *, needed_bytes: int, free_bytes: int) -> int | None:
        free = self._run(
            "reserve_disk",
            id=claim.job.id,
            fence=claim.fence,
            filesystem=filesystem,
            needed_bytes=needed_bytes,
            free_bytes=free_bytes,
        )
        return None if free is None else int(free)

    def reserved_bytes(self, filesystem: str) -> int:
        return int(self._run("reserved", filesystem=filesystem))

    def publish(self, claim: Claim, *, lease_seconds: float) -> Verdict:
        return self._run("publish", id=claim.job.id, fence=claim.fence, lease_ms=_milliseconds(lease_seconds))

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        return bool(self._run("settle", id=claim.job.id, fence=claim.fence, **_outcome_fields(outcome)))

    def open_parts(self, claim: Claim, fingerprint: str, count: int) -> Parts | None:
        found = self._run("open_parts", id=claim.job.id, fence=claim.fence, fingerprint=fingerprint, count=count)
        return _parts_of(found) if found else None

    def take_part(self, job_id: str, *, lease_seconds: float) -> PartClaim | None:
        found = self._run("take_part", id=job_id, lease_ms=_milliseconds(lease_seconds))
        if found is None:
            return None
        number, fence, job_fence = found
        return PartClaim(job_id=job_id, job_fence=job_fence, number=number, fence=fence)

    def renew_part(self, part: PartClaim, *, lease_seconds: float) -> bool:
        return bool(self._run("renew_part", **_part_fields(part), lease_ms=_milliseconds(lease_seconds)))

    def part_done(self, part: PartClaim, left_behind: str) -> bool:
        return bool(self._run("part_done", **_part_fields(part), left_behind=left_behind))

    def invite(self, job_id: str) -> None:
        self._run("invite", id=job_id)

    def parts(self, job_id: str) -> Parts | None:
        found = self._run("show_parts", id=job_id)
        return _parts_of(found) if found else None

    def announce(self, slot: WorkerSlot, *, seconds: float) -> None:
        self._run("announce", slot=slot.model_dump(), described=slot.model_dump_json(), alive_ms=_milliseconds(seconds))

    def withdraw(self, worker_id: str) -> None:
        self._run("withdraw", worker_id=worker_id)

    def slots(self) -> tuple[WorkerSlot, ...]:
        found = [WorkerSlot.model_validate_json(text) for text in self._run("list_slots")]
        return tuple(sorted(found, key=lambda slot: slot.worker_id))

    def reap(self, *, empty_queues: Collection[str] | None = None) -> tuple[str, ...]:
        touched = self._run(
            "reap",
            limit=_REAPED_AT_ONCE,
            patience_ms=self._patience_ms,
            retention_ms=self._retention_ms,
            empty_queues=dict.fromkeys(empty_queues or (), True),
        )
        return tuple(dict.fromkeys(touched))

    def unclean(self) -> tuple[Unclean, ...]:
        found = self._run(
            "unclean", limit=_REAPED_AT_ONCE, keep_ms=self._keep_partials_ms, retention_ms=self._retention_ms
        )
        pairs = zip(found[::2], found[1::2], strict=True)
        return tuple(Unclean(job=job, fence=int(fence)) for fence, record in pairs if (job := _readable(record)))

    def cleaned(self, unclean: Unclean) -> None:
        self._run("cleaned", id=unclean.job.id, fence=unclean.fence)

    def take_wake_ups(self, *, limit: int = 100) -> tuple[WakeUp, ...]:
        found: list[Any] = self._run("take_wake_ups", limit=limit)
        rows = zip(found[::3], found[1::3], found[2::3], strict=True)
        return tuple(
            WakeUp(job_id=job_id, queue=queue_of(resource_class), priority=AMQP_PRIORITY[_priority(priority)])
            for job_id, resource_class, priority in rows
        )

    def ping(self) -> None:
        with _reaching_the_server():
            self._redis.ping()  # pyright: ignore[reportUnknownMemberType]  # redis-py leaves its keyword arguments untyped

    def _existing(self, job_id: str, record: Sequence[str]) -> Job:
        if not record:
            raise job_not_found(job_id)
        return job_of(record)

    def _run(self, script: str, **given: object) -> Any:
        with _reaching_the_server():
            return self._scripts.run(script, {**self._constants, **given})


def _same_request(job: Job, request: JobRequest, key: str) -> Job:
    if job.request != request:
        raise idempotency_mismatch(key, job.id)
    return job


def _outcome_fields(outcome: Outcome) -> dict[str, object]:
    match outcome:
        case Done(result=result):
            return {"outcome": "done", "result": result.model_dump_json()}
        case Broken(error=error):
            return {"outcome": "broken", "error": error.model_dump_json(), "retryable": error.retryable}
        case Stopped():
            return {"outcome": "stopped"}
        case Returned():
            return {"outcome": "returned"}
        case Lost(error=error):
            return {"outcome": "lost", "error": error.model_dump_json()}
        case Postponed(waiting=waiting, seconds=seconds):
            waits = waiting.model_dump_json()
            return {"outcome": "postponed", "waits": waits, "delay_ms": _milliseconds(seconds)}
        case _:
            assert_never(outcome)


def _part_fields(part: PartClaim) -> dict[str, object]:
    return {"id": part.job_id, "job_fence": part.job_fence, "number": part.number, "part_fence": part.fence}


def _parts_of(flat: Sequence[str]) -> Parts:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    done = {int(name[5:]): value for name, value in fields.items() if name.startswith("done:")}
    return Parts(fingerprint=fields["fingerprint"], count=int(fields["count"]), done=done)


def _priority(text: str) -> Priority:
    assert text in AMQP_PRIORITY
    return text


def _dependency_error(answer: str, job_id: str) -> FerryError:
    return unknown_dependency(job_id) if answer == "unknown" else dependency_ended(job_id)


def _readable(record: Sequence[str]) -> Job | None:
    """The job in a record; None where there is none any more, or another version must see to it."""
    try:
        return job_of(record) if record else None
    except FerryError:
        return None


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


@contextmanager
def _reaching_the_server() -> Generator[None]:
    """UnavailableError for what the server's or the network's state causes; a script's own fault stays as it is."""
    try:
        yield
    except (ConnectionError, TimeoutError, OutOfMemoryError, ReadOnlyError) as error:
        raise _unavailable(error) from error
    except ResponseError as error:
        if str(error).startswith("MISCONF"):  # It cannot write its append-only file: a full disk, mostly.
            raise _unavailable(error) from error
        raise


def _unavailable(error: RedisError) -> UnavailableError:
    return UnavailableError(
        "store_unavailable",
        "the job store",
        found=str(error) or type(error).__name__,
        expected="an answer from the Redis server",
        next_step="Check that `ferry up` or the server at FERRY_BROKER_URL runs, then try again.",
    )
