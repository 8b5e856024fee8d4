"""The job store in Redis (or Valkey): every transition is one Lua script on the server's clock."""

from collections.abc import Generator, Sequence
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
from ..jobs.errors import UnavailableError
from ..jobs.spec import JobRequest
from ..jobs.state import Job, Progress
from ..jobs.store import (
    Broken,
    Claim,
    Done,
    JobFilter,
    JobPage,
    Limits,
    Outcome,
    Returned,
    Stopped,
    Verdict,
)
from ..jobs.store_errors import idempotency_mismatch, job_not_found, lease_lost, target_reserved
from .celery_message import QUEUE, wake_up_template
from .connection import connect
from .record import indexes_for, indexes_of, job_of, new_fields
from .scripts import Scripts

_REAPED_AT_ONCE = 100
_LOOKED_AT = 1_000
"""Ids that one page of a filtered list looks at, at most."""


class RedisStore:
    """Holds the truth about jobs, and sends the Celery messages that wake workers.

    A message that left the queue `patience_seconds` ago without a claim is taken for lost, and sent again.
    """

    def __init__(self, redis: Redis, *, limits: Limits | None = None, patience_seconds: float = 10.0) -> None:
        self._redis = redis
        self._limits = limits or Limits()
        self._patience_ms = round(patience_seconds * 1000)
        self._scripts = Scripts(redis)
        self._wake_up = {"queue": QUEUE, "message": wake_up_template()}
        self._lost = {"lost": lease_lost().model_dump_json()}

    @classmethod
    def from_url(cls, url: str, *, limits: Limits | None = None, patience_seconds: float = 10.0) -> Self:
        """A store on the server at `url`; connects with the first call."""
        return cls(connect(url), limits=limits, patience_seconds=patience_seconds)

    def submit(
        self, job_id: str, request: JobRequest, *, target: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        answer, found = self._run(
            "submit",
            id=job_id,
            target=target,
            idempotency_key=idempotency_key,
            fields=new_fields(request, self._limits),
            indexes=indexes_of(request),
            **self._wake_up,
        )
        if answer == "reserved":
            raise target_reserved(target or "", found)
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
        return JobPage(
            jobs=tuple(job_of(record) for record in records),
            next_cursor=encode_cursor(int(last)) if last else None,
        )

    def cancel(self, job_id: str) -> Job:
        return self._existing(job_id, self._run("cancel", id=job_id))

    def claim(self, job_id: str, worker_id: str, *, lease_seconds: float) -> Claim | None:
        record = self._run(
            "claim",
            id=job_id,
            worker_id=worker_id,
            lease_ms=round(lease_seconds * 1000),
            progress=Progress().model_dump_json(),
            **self._lost,
        )
        if not record:
            return None
        job = job_of(record)
        return Claim(job=job, fence=job.attempts, worker_id=worker_id)

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        return self._run(
            "heartbeat",
            id=claim.job.id,
            fence=claim.fence,
            lease_ms=round(lease_seconds * 1000),
            progress=progress.model_dump_json(),
        )

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        return bool(self._run("settle", id=claim.job.id, fence=claim.fence, **_outcome_fields(outcome)))

    def reap(self) -> tuple[str, ...]:
        touched = self._run("reap", limit=_REAPED_AT_ONCE, patience_ms=self._patience_ms, **self._wake_up, **self._lost)
        return tuple(dict.fromkeys(touched))

    def ping(self) -> None:
        with _reaching_the_server():
            self._redis.ping()  # pyright: ignore[reportUnknownMemberType]  # redis-py leaves its keyword arguments untyped

    def _existing(self, job_id: str, record: Sequence[str]) -> Job:
        if not record:
            raise job_not_found(job_id)
        return job_of(record)

    def _run(self, script: str, **given: object) -> Any:
        with _reaching_the_server():
            return self._scripts.run(script, given)


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
        case _:
            assert_never(outcome)


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
