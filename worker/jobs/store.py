"""The job store's Protocol: the one place where a job's truth lives."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import ErrorInfo
from .events import JobEvent
from .parts import PartClaim, Parts
from .slots import WorkerSlot
from .spec import JobKind, JobRequest
from .state import Job, Progress, Result, StateName
from .waiting import WaitsForDisk

Verdict = Literal["go_on", "cancel", "fenced"]
"""A heartbeat's answer: keep working; stop, the user asked; stop, the lease is no longer yours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A worker's time-limited right to a job. `fence` grows with each claim: a stale one changes nothing."""

    job: Job
    fence: int
    slot: WorkerSlot
    devices: tuple[str, ...] = ()
    """UUIDs of the GPUs leased with it, the slot's own first."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Outcome: queue again; the attempt vanished through no fault of the job. Counted apart from failures."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponed:
    """Outcome: queue again after a while; something that the job needs is not there now."""

    waiting: WaitsForDisk
    seconds: float


Outcome = Done | Broken | Stopped | Returned | Lost | Postponed


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
    unreadable: tuple[ErrorInfo, ...] = ()
    """Why others of the page are not among them: records that this version cannot read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps held in the record: `failures` for retryable errors, `losses` for attempts that vanished."""

    failures: int = 3
    losses: int = 20
    retry_delay_seconds: float = 2.0
    """Doubles with each failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeUp:
    """A message to send, where the broker is not the store's own server."""

    job_id: str
    queue: str
    priority: int
    """0 to 9, 9 first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclean:
    """A job whose attempts may have left partial folders; attempts up to `fence` are over."""

    job: Job
    fence: int


RETENTION_SECONDS = 30 * 86_400.0
"""How long ended jobs are remembered, unless settings say otherwise."""


KEEP_PARTIALS_SECONDS = 900.0
"""How long what a failed or cancelled job wrote is kept for a retry, unless settings say otherwise."""


class JobStore(Protocol):
    """Every transition is one atomic compare-and-set on the store's own clock.

    `submit` writes idempotency key, target reservation, record, event and wake-up message at once. A target stays
    reserved until its job is terminal. Raises UnavailableError where the store cannot be reached, InternalError
    (`newer_record`) for a record that a newer version wrote.
    """

    def submit(
        self, job_id: str, request: JobRequest, *, target: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Accept a job. The same key and request answer the first job again; ConflictError where the key came with
        another request (`idempotency_mismatch`), a live job holds the target (`target_reserved`, naming it), or a job
        that it depends on has failed; BadInputError where there is no such job.

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

    def events(self, job_id: str, *, after: int = 0) -> tuple[JobEvent, ...]:
        """The job's history after event number `after`, oldest first; NotFoundError without such a job."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Queued: cancelled at once. Running: asks its worker to stop, unless it publishes already. Terminal:
        unchanged. Idempotent."""
        ...

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again, its counts of failures and losses at zero; one that waits or runs
        stays as it is. ConflictError for one that succeeded, or whose target another live job holds."""
        ...

    def claim(self, job_id: str, slot: WorkerSlot, *, lease_seconds: float) -> Claim | None:
        """Take a queued job, with the GPUs that it needs. None: nothing to do, drop the message.

        A running one can be taken where its lease is over or is this slot's own (an attempt died under it, or the
        answer to its claim was lost on the way); both count as a loss. A job that needs more GPUs than are free on
        the slot's host waits; the host's GPUs are then kept for it, so that smaller jobs cannot starve it.
        """
        ...

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        """Renew the lease and record progress."""
        ...

    def reserve_disk(self, claim: Claim, filesystem: str, *, needed_bytes: int, free_bytes: int) -> int | None:
        """Keep `needed_bytes` of a file system that has `free_bytes` for this attempt, until it ends.

        None: done. A number: there is no room, and so many bytes are free when what other running jobs have still to
        write is taken off.
        """
        ...

    def reserved_bytes(self, filesystem: str) -> int:
        """What running jobs have still to write to a file system."""
        ...

    def publish(self, claim: Claim, *, lease_seconds: float) -> Verdict:
        """Renew the lease for the last time before the output appears: from here on no cancel is taken."""
        ...

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        """Write the attempt's outcome; False where the claim is stale and nothing was changed.

        Settling twice with the same claim answers True twice, so that it may be repeated when an answer was lost.
        """
        ...

    def open_parts(self, claim: Claim, fingerprint: str, count: int) -> Parts | None:
        """Say into how many parts the job is cut. Parts done before under the same fingerprint stay done; others are
        forgotten. None where the claim is stale."""
        ...

    def take_part(self, job_id: str, *, lease_seconds: float) -> PartClaim | None:
        """The right to write the first part that is neither done nor held; None: no part is to be had now."""
        ...

    def renew_part(self, part: PartClaim, *, lease_seconds: float) -> bool:
        """Keep a part; False where it is no longer ours."""
        ...

    def part_done(self, part: PartClaim, left_behind: str) -> bool:
        """Record a finished part; False where it is no longer ours, and nothing was changed."""
        ...

    def invite(self, job_id: str) -> None:
        """Ask for one more worker to help with a running job's parts, if any is free."""
        ...

    def parts(self, job_id: str) -> Parts | None:
        """How far the job's parts have come; None where none were opened."""
        ...

    def announce(self, slot: WorkerSlot, *, seconds: float) -> None:
        """Say that a slot is alive, for so long."""
        ...

    def withdraw(self, worker_id: str) -> None:
        """A slot goes away in good order."""
        ...

    def slots(self) -> tuple[WorkerSlot, ...]:
        """Those that are alive, by their names."""
        ...

    def reap(self, *, empty_queues: Collection[str] | None = None) -> tuple[str, ...]:
        """Queue again (or end) jobs whose lease is over, wake jobs whose message may be lost, forget terminal jobs past
        their retention; answers the ids of jobs that were queued, ended or woken.

        A message may be lost where its queue holds none as old. The store sees its own server's queues; of another
        broker's, `empty_queues` names those that hold no message at all.
        """
        ...

    def unclean(self) -> tuple[Unclean, ...]:
        """Jobs whose attempts may have left something on a disk that nobody goes on with, some at a time: they
        succeeded, or ended otherwise and were not retried for a while."""
        ...

    def cleaned(self, unclean: Unclean) -> None:
        """Nothing of these attempts is left."""
        ...

    def take_wake_ups(self, *, limit: int = 100) -> tuple[WakeUp, ...]:
        """Messages to send through a broker that is not the store's server, each marked as sent."""
        ...

    def ping(self) -> None:
        """Raise UnavailableError where the store cannot be reached."""
        ...
