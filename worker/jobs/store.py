"""The job store's Protocol: the one place where a job's truth lives."""

from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import ErrorInfo
from .spec import JobKind, JobRequest
from .state import Job, Progress, Result, StateName

Verdict = Literal["go_on", "cancel", "fenced"]
"""A heartbeat's answer: keep working; stop, the user asked; stop, the lease is no longer yours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker's time-limited right to a job. `fence` grows with each claim: a stale one changes nothing."""

    job: Job
    fence: int
    worker_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Outcome: settle as succeeded."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Outcome: settle as failed, or queue again while `error.retryable` and attempts are left."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """Outcome: settle as cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """Outcome: queue again at once; the worker goes away in good order, which is nobody's failure."""


Outcome = Done | Broken | Stopped | Returned


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; None means any."""

    state: StateName | None = None
    kind: JobKind | None = None
    label: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Newest first. `next_cursor` is None on the last page."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps held in the record: `failures` for retryable errors, `losses` for leases that ran out."""

    failures: int = 3
    losses: int = 20
    retry_delay_seconds: float = 2.0
    """Doubles with each failure."""


class JobStore(Protocol):
    """Every transition is one atomic compare-and-set on the store's own clock.

    `submit` writes idempotency key, target reservation, record and wake-up message at once. A target stays reserved
    until its job is terminal. Raises UnavailableError where the store cannot be reached.
    """

    def submit(
        self, job_id: str, request: JobRequest, *, target: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Accept a job. The same key and request answer the first job again; ConflictError where the key came with
        another request (`idempotency_mismatch`) or a live job holds the target (`target_reserved`, naming it).

        `target` is the resolved path, so that two spellings of one location meet.
        """
        ...

    def find(self, idempotency_key: str, request: JobRequest) -> Job | None:
        """The job that was accepted under this key, if any; ConflictError where it came with another request."""
        ...

    def get(self, job_id: str) -> Job:
        """The record; NotFoundError without one."""
        ...

    def list(self, which: JobFilter, *, cursor: str | None = None, limit: int = 50) -> JobPage:
        """A page of jobs, newest first; a page may hold fewer than `limit` although more follow."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Queued: cancelled at once. Running: asks its worker to stop. Terminal: unchanged. Idempotent."""
        ...

    def claim(self, job_id: str, worker_id: str, *, lease_seconds: float) -> Claim | None:
        """Take a queued job. None: nothing to do, drop the message.

        A running one can be taken where its lease is over or is `worker_id`'s own (an attempt died under it, or the
        answer to its claim was lost on the way); both count as a loss.
        """
        ...

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        """Renew the lease and record progress."""
        ...

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        """Write the attempt's outcome; False where the claim is stale and nothing was changed.

        Settling twice with the same claim answers True twice, so that it may be repeated when an answer was lost.
        """
        ...

    def reap(self) -> tuple[str, ...]:
        """Queue again (or end) jobs whose lease is over, wake jobs whose message may be lost; answers their ids."""
        ...

    def ping(self) -> None:
        """Raise UnavailableError where the store cannot be reached."""
        ...
