"""A JobStore in this process's memory: the shipped double of the Redis one, for tests and experiments."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import assert_never

from .cursors import decode_cursor, encode_cursor
from .errors import ErrorInfo
from .spec import JobRequest
from .state import (
    MOVES,
    TERMINAL,
    Cancelled,
    Failed,
    Job,
    JobState,
    Progress,
    Queued,
    Running,
    Succeeded,
)
from .store import Broken, Claim, Done, JobFilter, JobPage, Limits, Outcome, Returned, Stopped, Verdict
from .store_errors import idempotency_mismatch, job_not_found, lease_lost, target_reserved


@dataclass(slots=True)
class _Entry:
    job: Job
    sequence: int
    target: str | None
    failures: int = 0
    losses: int = 0
    settled_fence: int = 0


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class MemoryStore:
    """Keeps jobs until the process ends. It wakes nobody: workers, if any, poll `list`."""

    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], datetime] = _utc_now
    _entries: dict[str, _Entry] = field(default_factory=dict[str, _Entry], init=False)
    _job_by_key: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _holder_by_target: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def submit(
        self, job_id: str, request: JobRequest, *, target: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        with self._lock:
            known = self._job_by_key.get(idempotency_key or "", job_id)
            if known in self._entries:
                return self._same_request(known, request, idempotency_key)
            if target is not None:
                self._reserve(target, job_id)
            now = self.clock()
            job = Job(id=job_id, request=request, state=Queued(), created_at=now, updated_at=now)
            self._entries[job_id] = _Entry(job=job, sequence=len(self._entries) + 1, target=target)
            if idempotency_key is not None:
                self._job_by_key[idempotency_key] = job_id
            return job

    def find(self, idempotency_key: str, request: JobRequest) -> Job | None:
        with self._lock:
            known = self._job_by_key.get(idempotency_key)
            return self._same_request(known, request, idempotency_key) if known else None

    def get(self, job_id: str) -> Job:
        with self._lock:
            return self._entry(job_id).job

    def list(self, which: JobFilter, *, cursor: str | None = None, limit: int = 50) -> JobPage:
        before = decode_cursor(cursor) if cursor else None
        with self._lock:
            found = [
                entry
                for entry in reversed(self._entries.values())
                if _matches(entry.job, which) and (before is None or entry.sequence < before)
            ]
        more = len(found) > limit
        return JobPage(
            jobs=tuple(entry.job for entry in found[:limit]),
            next_cursor=encode_cursor(found[limit - 1].sequence) if more else None,
        )

    def cancel(self, job_id: str) -> Job:
        with self._lock:
            entry = self._entry(job_id)
            match entry.job.state:
                case Queued():
                    self._move(entry, Cancelled())
                case Running() as running:
                    self._update(entry, state=running.model_copy(update={"cancel_requested": True}))
                case _:
                    pass
            return entry.job

    def claim(self, job_id: str, worker_id: str, *, lease_seconds: float) -> Claim | None:
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None:
                return None
            state = entry.job.state
            if isinstance(state, Running) and state.worker_id == worker_id:
                self._lose(entry, state)
            self._lose_if_expired(entry)
            if not self._claimable(entry):
                return None
            fence = entry.job.attempts + 1
            running = Running(worker_id=worker_id, attempt=fence, lease_expires_at=self._later(lease_seconds))
            self._move(entry, running, attempts=fence)
            return Claim(job=entry.job, fence=fence, worker_id=worker_id)

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        with self._lock:
            entry, running = self._entry(claim.job.id), self._held(claim)
            if running is None:
                return "fenced"
            renewed = {"progress": progress, "lease_expires_at": self._later(lease_seconds)}
            self._update(entry, state=running.model_copy(update=renewed))
            return "cancel" if running.cancel_requested else "go_on"

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        with self._lock:
            entry, running = self._entry(claim.job.id), self._held(claim)
            if running is None:
                return entry.settled_fence == claim.fence
            self._move(entry, self._after(entry, running, outcome))
            entry.settled_fence = claim.fence
            return True

    def reap(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(job_id for job_id, entry in self._entries.items() if self._lose_if_expired(entry))

    def ping(self) -> None:
        pass

    def _same_request(self, job_id: str, request: JobRequest, key: str | None) -> Job:
        job = self._entries[job_id].job
        if job.request != request:
            raise idempotency_mismatch(key or job_id, job_id)
        return job

    def _reserve(self, target: str, job_id: str) -> None:
        holder = self._holder_by_target.setdefault(target, job_id)
        if holder != job_id:
            raise target_reserved(target, holder)

    def _entry(self, job_id: str) -> _Entry:
        if job_id not in self._entries:
            raise job_not_found(job_id)
        return self._entries[job_id]

    def _held(self, claim: Claim) -> Running | None:
        state = self._entry(claim.job.id).job.state
        return state if isinstance(state, Running) and state.attempt == claim.fence else None

    def _claimable(self, entry: _Entry) -> bool:
        state = entry.job.state
        return isinstance(state, Queued) and (state.not_before is None or state.not_before <= self.clock())

    def _after(self, entry: _Entry, running: Running, outcome: Outcome) -> JobState:
        match outcome:
            case Done(result=result):
                return Succeeded(result=result)
            case Stopped():
                return Cancelled()
            case Returned():
                return Cancelled() if running.cancel_requested else Queued()
            case Broken(error=error):
                return self._after_failure(entry, running, error)
            case _:
                assert_never(outcome)

    def _after_failure(self, entry: _Entry, running: Running, error: ErrorInfo) -> JobState:
        if not error.retryable:
            return Failed(error=error)
        if running.cancel_requested:
            return Cancelled()
        entry.failures += 1
        if entry.failures >= self.limits.failures:
            return Failed(error=error)
        delay = self.limits.retry_delay_seconds * 2 ** (entry.failures - 1)
        return Queued(not_before=self._later(delay), last_error=error)

    def _lose_if_expired(self, entry: _Entry) -> bool:
        state = entry.job.state
        if not isinstance(state, Running) or state.lease_expires_at > self.clock():
            return False
        self._lose(entry, state)
        return True

    def _lose(self, entry: _Entry, running: Running) -> None:
        entry.losses += 1
        if running.cancel_requested:
            self._move(entry, Cancelled())
        elif entry.losses >= self.limits.losses:
            self._move(entry, Failed(error=lease_lost()))
        else:
            self._move(entry, Queued(last_error=lease_lost()))

    def _move(self, entry: _Entry, state: JobState, **changes: int) -> None:
        assert state.state in MOVES[entry.job.state.state]
        self._update(entry, state=state, **changes)
        if state.state in TERMINAL and entry.target is not None:
            self._holder_by_target.pop(entry.target, None)

    def _update(self, entry: _Entry, **changes: object) -> None:
        entry.job = entry.job.model_copy(update={**changes, "updated_at": self.clock()})

    def _later(self, seconds: float) -> datetime:
        return self.clock() + timedelta(seconds=seconds)


def _matches(job: Job, which: JobFilter) -> bool:
    return all(_tests(job, which))


def _tests(job: Job, which: JobFilter) -> Iterator[bool]:
    if which.state is not None:
        yield job.state.state == which.state
    if which.kind is not None:
        yield job.request.spec.kind == which.kind
    if which.label is not None:
        name, value = which.label
        yield job.request.labels.get(name) == value
