"""A JobStore in this process's memory: the shipped double of the Redis one, for tests and experiments."""

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import assert_never

from .cursors import decode_cursor, encode_cursor
from .errors import ErrorInfo
from .events import KEPT_EVENTS, EventName, JobEvent
from .parts import PartClaim, Parts
from .queues import PRIORITIES
from .slots import WorkerSlot
from .spec import JobRequest, resource_class
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
from .store import (
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
from .store_errors import (
    dependency_ended,
    idempotency_mismatch,
    job_not_found,
    lease_lost,
    not_retryable,
    target_reserved,
    unknown_dependency,
)
from .waiting import Waiting, WaitsForDevices, WaitsForDisk, WaitsForJobs, WaitsForRetry, WaitsForSlot

_NOBODY_KNOWS = WaitsForSlot(resource_class="cpu", position=1, slots=0)
"""In an entry's own state; `get` and `list` say why a job waits now."""


@dataclass(slots=True)
class _PartHolder:
    fence: int
    until: datetime


@dataclass(slots=True)
class _Parts:
    fingerprint: str
    count: int
    fence: int = 0
    done: dict[int, str] = field(default_factory=dict[int, str])
    holders: dict[int, _PartHolder] = field(default_factory=dict[int, _PartHolder])


@dataclass(slots=True)
class _Entry:
    job: Job
    sequence: int
    target: str | None
    ready: int = 0
    """Grows with each readiness: the order in which jobs of one class and priority are served."""
    failures: int = 0
    losses: int = 0
    settled_fence: int = 0
    waits: Waiting | None = None
    blockers: set[str] = field(default_factory=set[str])
    events: list[JobEvent] = field(default_factory=list[JobEvent])
    told: int = 0
    parts: _Parts | None = None
    disk: tuple[str, int] | None = None
    unclean: int = 0
    key: str | None = None


@dataclass(slots=True)
class _Slot:
    slot: WorkerSlot
    until: datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class MemoryStore:
    """Keeps jobs until the process ends. It wakes nobody: workers, if any, poll `list`."""

    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], datetime] = _utc_now
    retention_seconds: float = RETENTION_SECONDS
    keep_partials_seconds: float = KEEP_PARTIALS_SECONDS
    _entries: dict[str, _Entry] = field(default_factory=dict[str, _Entry], init=False)
    _job_by_key: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _holder_by_target: dict[str, str] = field(default_factory=dict[str, str], init=False)
    _slots: dict[str, _Slot] = field(default_factory=dict[str, _Slot], init=False)
    _holds: dict[str, str] = field(default_factory=dict[str, str], init=False)
    """Hosts whose GPUs are kept for a job."""
    _counts: Counter[str] = field(default_factory=Counter[str], init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    def submit(
        self, job_id: str, request: JobRequest, *, target: str | None = None, idempotency_key: str | None = None
    ) -> Job:
        with self._lock:
            known = self._job_by_key.get(idempotency_key or "", job_id)
            if known in self._entries:
                return self._same_request(known, request, idempotency_key)
            self._refuse_reserved(target, job_id)
            blockers = self._blockers(request)
            now = self.clock()
            job = Job(id=job_id, request=request, state=Queued(waiting=_NOBODY_KNOWS), created_at=now, updated_at=now)
            entry = _Entry(job, self._next("sequence"), target, ready=self._next("ready"), blockers=blockers)
            entry.key = idempotency_key
            self._entries[job_id] = entry
            if target is not None:
                self._holder_by_target[target] = job_id
            if idempotency_key is not None:
                self._job_by_key[idempotency_key] = job_id
            self._tell(entry, "submitted")
            return self._shown(entry)

    def find(self, idempotency_key: str, request: JobRequest) -> Job | None:
        with self._lock:
            known = self._job_by_key.get(idempotency_key)
            return self._same_request(known, request, idempotency_key) if known else None

    def get(self, job_id: str) -> Job:
        with self._lock:
            return self._shown(self._entry(job_id))

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
                jobs=tuple(self._shown(entry) for entry in found[:limit]),
                next_cursor=encode_cursor(found[limit - 1].sequence) if more else None,
            )

    def events(self, job_id: str, *, after: int = 0) -> tuple[JobEvent, ...]:
        with self._lock:
            return tuple(event for event in self._entry(job_id).events if event.number > after)

    def cancel(self, job_id: str) -> Job:
        with self._lock:
            entry = self._entry(job_id)
            match entry.job.state:
                case Queued():
                    self._finish(entry, Cancelled())
                case Running(cancel_requested=False, publishing=False) as running:
                    self._update(entry, state=running.model_copy(update={"cancel_requested": True}))
                    self._tell(entry, "cancel_requested")
                case _:
                    pass
            return self._shown(entry)

    def retry(self, job_id: str) -> Job:
        with self._lock:
            entry = self._entry(job_id)
            match entry.job.state:
                case Succeeded():
                    raise not_retryable(job_id, "succeeded")
                case Failed() | Cancelled():
                    self._refuse_reserved(entry.target, job_id)
                    entry.blockers = self._blockers(entry.job.request)
                    if entry.target is not None:
                        self._holder_by_target[entry.target] = job_id
                    entry.failures = entry.losses = 0
                    self._queue(entry)
                    self._tell(entry, "retried")
                case _:
                    pass
            return self._shown(entry)

    def claim(self, job_id: str, slot: WorkerSlot, *, lease_seconds: float) -> Claim | None:
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None:
                return None
            state = entry.job.state
            if isinstance(state, Running) and state.worker_id == slot.worker_id:
                self._lose(entry, lease_lost())
            self._lose_if_expired(entry)
            devices = self._lease_devices(entry, slot) if self._claimable(entry) else None
            if devices is None:
                return None
            fence = entry.job.attempts + 1
            running = Running(
                worker_id=slot.worker_id,
                host=slot.host,
                devices=devices,
                attempt=fence,
                started_at=self.clock(),
                lease_expires_at=self._later(lease_seconds),
            )
            self._move(entry, running, attempts=fence)
            self._tell(entry, "claimed", worker_id=slot.worker_id, host=slot.host, devices=devices or None)
            return Claim(job=entry.job, fence=fence, slot=slot, devices=devices)

    def heartbeat(self, claim: Claim, progress: Progress, *, lease_seconds: float) -> Verdict:
        with self._lock:
            entry, running = self._entry(claim.job.id), self._held(claim)
            if running is None:
                return "fenced"
            renewed = {"progress": progress, "lease_expires_at": self._later(lease_seconds)}
            self._update(entry, state=running.model_copy(update=renewed))
            return "cancel" if running.cancel_requested else "go_on"

    def reserve_disk(self, claim: Claim, filesystem: str, *, needed_bytes: int, free_bytes: int) -> int | None:
        with self._lock:
            entry, running = self._entry(claim.job.id), self._held(claim)
            if running is None:
                return None
            free = max(0, free_bytes - sum(self._still_to_write(filesystem, but=entry)))
            if free < needed_bytes:
                return free
            entry.disk = (filesystem, needed_bytes)
            return None

    def reserved_bytes(self, filesystem: str) -> int:
        with self._lock:
            return sum(self._still_to_write(filesystem, but=None))

    def publish(self, claim: Claim, *, lease_seconds: float) -> Verdict:
        with self._lock:
            entry, running = self._entry(claim.job.id), self._held(claim)
            if running is None:
                return "fenced"
            if running.cancel_requested:
                return "cancel"
            if not running.publishing:
                self._tell(entry, "publishing")
            renewed = {"publishing": True, "lease_expires_at": self._later(lease_seconds)}
            self._update(entry, state=running.model_copy(update=renewed))
            return "go_on"

    def settle(self, claim: Claim, outcome: Outcome) -> bool:
        with self._lock:
            entry, running = self._entry(claim.job.id), self._held(claim)
            if running is None:
                return entry.settled_fence == claim.fence
            self._settle(entry, running, outcome)
            entry.settled_fence = claim.fence
            return True

    def open_parts(self, claim: Claim, fingerprint: str, count: int) -> Parts | None:
        with self._lock:
            entry = self._entry(claim.job.id)
            if self._held(claim) is None:
                return None
            known = entry.parts
            if known is None or (known.fingerprint, known.count) != (fingerprint, count):
                known = _Parts(fingerprint, count, fence=known.fence if known else 0)
            known.holders.clear()
            entry.parts = known
            return _shown_parts(known)

    def take_part(self, job_id: str, *, lease_seconds: float) -> PartClaim | None:
        with self._lock:
            entry = self._entries.get(job_id)
            if entry is None or entry.parts is None:
                return None
            parts, state = entry.parts, entry.job.state
            if not isinstance(state, Running) or state.cancel_requested or state.publishing:
                return None
            number = next((part for part in range(parts.count) if self._free(parts, part)), None)
            if number is None:
                return None
            parts.fence += 1
            parts.holders[number] = _PartHolder(parts.fence, self._later(lease_seconds))
            return PartClaim(job_id=job_id, job_fence=state.attempt, number=number, fence=parts.fence)

    def renew_part(self, part: PartClaim, *, lease_seconds: float) -> bool:
        with self._lock:
            holder = self._part_holder(part)
            if holder is None:
                return False
            holder.until = self._later(lease_seconds)
            return True

    def part_done(self, part: PartClaim, left_behind: str) -> bool:
        with self._lock:
            parts = self._entry(part.job_id).parts
            if parts is None or self._part_holder(part) is None:
                return False
            parts.done[part.number] = left_behind
            return True

    def invite(self, job_id: str) -> None:
        """Nobody listens."""

    def parts(self, job_id: str) -> Parts | None:
        with self._lock:
            entry = self._entries.get(job_id)
            return _shown_parts(entry.parts) if entry and entry.parts else None

    def announce(self, slot: WorkerSlot, *, seconds: float) -> None:
        with self._lock:
            self._slots[slot.worker_id] = _Slot(slot, self._later(seconds))

    def withdraw(self, worker_id: str) -> None:
        with self._lock:
            self._slots.pop(worker_id, None)

    def slots(self) -> tuple[WorkerSlot, ...]:
        with self._lock:
            alive = [known.slot for known in self._slots.values() if known.until > self.clock()]
            return tuple(sorted(alive, key=lambda slot: slot.worker_id))

    def reap(self, *, empty_queues: Collection[str] | None = None) -> tuple[str, ...]:
        with self._lock:
            lost = tuple(job_id for job_id, entry in self._entries.items() if self._lose_if_expired(entry))
            for entry in [*self._entries.values()]:
                self._forget_if_old(entry)
            return lost

    def unclean(self) -> tuple[Unclean, ...]:
        with self._lock:
            return tuple(
                Unclean(job=self._shown(entry), fence=entry.unclean)
                for entry in self._entries.values()
                if entry.unclean and self._is_over(entry.job)
            )

    def _is_over(self, job: Job) -> bool:
        kept = min(self.keep_partials_seconds, self.retention_seconds)
        match job.state:
            case Succeeded():
                return True
            case Failed() | Cancelled():
                return job.updated_at <= self._later(-kept)
            case Queued() | Running():
                return False

    def cleaned(self, unclean: Unclean) -> None:
        with self._lock:
            entry = self._entry(unclean.job.id)
            if entry.unclean <= unclean.fence:
                entry.unclean = 0

    def take_wake_ups(self, *, limit: int = 100) -> tuple[WakeUp, ...]:
        return ()

    def ping(self) -> None:
        pass

    def _shown(self, entry: _Entry) -> Job:
        state = entry.job.state
        if not isinstance(state, Queued):
            return entry.job
        return entry.job.model_copy(update={"state": state.model_copy(update={"waiting": self._waiting(entry, state)})})

    def _waiting(self, entry: _Entry, state: Queued) -> Waiting:
        if entry.blockers:
            return WaitsForJobs(jobs=tuple(sorted(entry.blockers)))
        if entry.waits is not None:
            return entry.waits
        if state.not_before is not None and state.not_before > self.clock():
            return WaitsForRetry(until=state.not_before)
        wanted = resource_class(entry.job.request)
        return WaitsForSlot(resource_class=wanted, position=self._position(entry), slots=self._capacity(wanted))

    def _position(self, entry: _Entry) -> int:
        return 1 + sum(
            _order(other) < _order(entry)
            for other in self._entries.values()
            if self._in_queue(other) and resource_class(other.job.request) == resource_class(entry.job.request)
        )

    def _in_queue(self, entry: _Entry) -> bool:
        return self._claimable(entry) and entry.waits is None

    def _capacity(self, wanted: str) -> int:
        if wanted == "cpu":
            return sum(slot.gpu is None for slot in self.slots())
        each = int(wanted.partition(":")[2] or 1)
        gpus = Counter(slot.host for slot in self.slots() if slot.gpu is not None)
        return sum(count // each for count in gpus.values())

    def _lease_devices(self, entry: _Entry, slot: WorkerSlot) -> tuple[str, ...] | None:
        needed = entry.job.request.gpus
        if needed == 0:
            return ()
        if slot.gpu is None:
            return None
        there = {other.gpu for other in self.slots() if other.host == slot.host and other.gpu} | {slot.gpu}
        free = sorted(there - self._leased(slot.host), key=lambda gpu: (gpu != slot.gpu, gpu))
        holder = self._holds.get(slot.host, entry.job.id)
        if holder == entry.job.id and len(free) >= needed and free[0] == slot.gpu:
            return tuple(free[:needed])
        if len(there) >= needed:
            self._holds.setdefault(slot.host, entry.job.id)
        entry.waits = WaitsForDevices(needed=needed, free=len(free), host=slot.host)
        return None

    def _leased(self, host: str) -> set[str]:
        states = [entry.job.state for entry in self._entries.values()]
        return {gpu for state in states if isinstance(state, Running) and state.host == host for gpu in state.devices}

    def _still_to_write(self, filesystem: str, *, but: _Entry | None) -> Iterator[int]:
        for entry in self._entries.values():
            state = entry.job.state
            if entry is not but and isinstance(state, Running) and entry.disk and entry.disk[0] == filesystem:
                yield max(0, entry.disk[1] - state.progress.done_bytes)

    def _free(self, parts: _Parts, part: int) -> bool:
        holder = parts.holders.get(part)
        return part not in parts.done and (holder is None or holder.until <= self.clock())

    def _part_holder(self, part: PartClaim) -> _PartHolder | None:
        entry = self._entries.get(part.job_id)
        state = entry.job.state if entry else None
        if not entry or not entry.parts or not isinstance(state, Running) or state.attempt != part.job_fence:
            return None
        holder = entry.parts.holders.get(part.number)
        return holder if holder and holder.fence == part.fence else None

    def _same_request(self, job_id: str, request: JobRequest, key: str | None) -> Job:
        entry = self._entries[job_id]
        if entry.job.request != request:
            raise idempotency_mismatch(key or job_id, job_id)
        return self._shown(entry)

    def _refuse_reserved(self, target: str | None, job_id: str) -> None:
        holder = self._holder_by_target.get(target, job_id) if target is not None else job_id
        if holder != job_id:
            raise target_reserved(str(target), holder)

    def _blockers(self, request: JobRequest) -> set[str]:
        found = [(dependency, self._entries.get(dependency)) for dependency in request.depends_on]
        for dependency, entry in found:
            if entry is None:
                raise unknown_dependency(dependency)
            if isinstance(entry.job.state, Failed | Cancelled):
                raise dependency_ended(dependency)
        return {name for name, entry in found if entry and not isinstance(entry.job.state, Succeeded)}

    def _entry(self, job_id: str) -> _Entry:
        if job_id not in self._entries:
            raise job_not_found(job_id)
        return self._entries[job_id]

    def _held(self, claim: Claim) -> Running | None:
        state = self._entry(claim.job.id).job.state
        return state if isinstance(state, Running) and state.attempt == claim.fence else None

    def _claimable(self, entry: _Entry) -> bool:
        state = entry.job.state
        due = isinstance(state, Queued) and (state.not_before is None or state.not_before <= self.clock())
        return due and not entry.blockers

    def _settle(self, entry: _Entry, running: Running, outcome: Outcome) -> None:
        match outcome:
            case Done(result=result):
                self._finish(entry, Succeeded(result=result))
            case Stopped():
                self._finish(entry, Cancelled())
            case Returned():
                self._back(entry, running, "returned")
            case Postponed(waiting=waiting, seconds=seconds):
                self._back(entry, running, "waits", waiting=waiting, not_before=self._later(seconds))
            case Lost(error=error):
                self._lose(entry, error)
            case Broken(error=error):
                self._break(entry, running, error)
            case _:
                assert_never(outcome)

    def _back(
        self,
        entry: _Entry,
        running: Running,
        event: EventName,
        *,
        waiting: WaitsForDisk | None = None,
        not_before: datetime | None = None,
    ) -> None:
        if running.cancel_requested:
            self._finish(entry, Cancelled())
            return
        self._tell(entry, event)
        self._queue(entry, not_before=not_before)
        entry.waits = waiting

    def _break(self, entry: _Entry, running: Running, error: ErrorInfo) -> None:
        if not error.retryable:
            self._finish(entry, Failed(error=error))
        elif running.cancel_requested:
            self._finish(entry, Cancelled())
        else:
            entry.failures += 1
            if entry.failures >= self.limits.failures:
                self._finish(entry, Failed(error=error))
            else:
                self._tell(entry, "broken", error=error)
                delay = self.limits.retry_delay_seconds * 2 ** (entry.failures - 1)
                self._queue(entry, not_before=self._later(delay), last_error=error)

    def _lose_if_expired(self, entry: _Entry) -> bool:
        state = entry.job.state
        if not isinstance(state, Running) or state.lease_expires_at > self.clock():
            return False
        self._lose(entry, lease_lost())
        return True

    def _lose(self, entry: _Entry, error: ErrorInfo) -> None:
        running = entry.job.state
        assert isinstance(running, Running)
        entry.losses += 1
        entry.unclean = entry.job.attempts
        self._tell(entry, "lost", error=error, worker_id=running.worker_id)
        if running.cancel_requested:
            self._finish(entry, Cancelled())
        elif entry.losses >= self.limits.losses:
            self._finish(entry, Failed(error=error))
        else:
            self._queue(entry, last_error=error)

    def _queue(self, entry: _Entry, *, not_before: datetime | None = None, last_error: ErrorInfo | None = None) -> None:
        self._move(entry, Queued(waiting=_NOBODY_KNOWS, not_before=not_before, last_error=last_error))
        entry.ready = self._next("ready")

    def _finish(self, entry: _Entry, state: Succeeded | Failed | Cancelled) -> None:
        self._move(entry, state)
        entry.blockers.clear()
        entry.parts = None
        if not isinstance(state, Succeeded) and entry.job.attempts:
            entry.unclean = entry.job.attempts
        if entry.target is not None:
            self._holder_by_target.pop(entry.target, None)
        self._tell(entry, state.state, error=state.error if isinstance(state, Failed) else None)
        self._tell_dependents(entry)

    def _tell_dependents(self, entry: _Entry) -> None:
        for dependent in [other for other in self._entries.values() if entry.job.id in other.blockers]:
            if not isinstance(dependent.job.state, Queued):
                continue  # It ended with another one, which this one ended.
            dependent.blockers.discard(entry.job.id)
            if not isinstance(entry.job.state, Succeeded):
                self._finish(dependent, Failed(error=dependency_ended(entry.job.id).info))
            elif not dependent.blockers:
                dependent.ready = self._next("ready")

    def _move(self, entry: _Entry, state: JobState, **changes: int) -> None:
        assert state.state in MOVES[entry.job.state.state]
        self._update(entry, state=state, **changes)
        entry.waits = entry.disk = None
        for host in [host for host, holder in self._holds.items() if holder == entry.job.id]:
            del self._holds[host]

    def _update(self, entry: _Entry, **changes: object) -> None:
        entry.job = entry.job.model_copy(update={**changes, "updated_at": self.clock()})

    def _tell(
        self,
        entry: _Entry,
        event: EventName,
        *,
        error: ErrorInfo | None = None,
        worker_id: str | None = None,
        host: str | None = None,
        devices: tuple[str, ...] | None = None,
    ) -> None:
        entry.told += 1
        entry.events.append(
            JobEvent(
                number=entry.told,
                at=self.clock(),
                event=event,
                attempt=entry.job.attempts,
                worker_id=worker_id,
                host=host,
                devices=devices,
                error=error,
            )
        )
        del entry.events[:-KEPT_EVENTS]

    def _forget_if_old(self, entry: _Entry) -> None:
        ended = entry.job.state.state in TERMINAL
        if not ended or entry.unclean or entry.job.updated_at > self._later(-self.retention_seconds):
            return
        del self._entries[entry.job.id]
        if entry.key is not None:
            del self._job_by_key[entry.key]

    def _next(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]

    def _later(self, seconds: float) -> datetime:
        return self.clock() + timedelta(seconds=seconds)


def _order(entry: _Entry) -> tuple[int, int]:
    return PRIORITIES.index(entry.job.request.priority), entry.ready


def _shown_parts(parts: _Parts) -> Parts:
    return Parts(fingerprint=parts.fingerprint, count=parts.count, done=dict(parts.done))


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
