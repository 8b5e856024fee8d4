"""Parts of one job offered to all workers: the job's own attempt and its helpers take them from the store."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..engine.journal import Journal, segments_json, segments_of
from ..engine.part_queue import Segments
from ..engine.parts import Part
from ..engine.permit import Permit, now
from ..jobs.errors import TransientError, UnavailableError
from ..jobs.parts import PartClaim
from ..jobs.store import Claim, JobStore

_ASK_SECONDS = 0.2
"""Between two questions to the store by someone who has nothing to do."""
_LOOK_SECONDS = 2.0
"""Between two looks at what others have done, by someone who has enough to do: the answer may be megabytes."""


@dataclass(slots=True)
class _Taken:
    """The parts that one process has taken, kept alive."""

    store: JobStore
    job_id: str
    lease_seconds: float
    held: dict[int, PartClaim] = field(default_factory=dict[int, PartClaim])
    _renewed: float = field(default_factory=now)
    _asked: float = -_ASK_SECONDS

    @property
    def waits(self) -> bool:
        """Whether there was no part to be had when it asked last."""
        return self._asked > 0

    def take(self) -> PartClaim | None:
        """None: none is to be had now, or it was asked for just before."""
        if now() - self._asked < _ASK_SECONDS:
            return None
        try:
            part = self.store.take_part(self.job_id, lease_seconds=self.lease_seconds)
        except UnavailableError:
            part = None
        if part is None:
            self._asked = now()
            return None
        self.held[part.number] = part
        self._asked = -_ASK_SECONDS
        return part

    def done(self, number: int, segments: Segments) -> None:
        """Where the part is another's by now, that one writes the same bytes, and says so."""
        part = self.held.pop(number)
        _patiently(lambda: self.store.part_done(part, segments_json(segments)), self.lease_seconds)

    def renew(self, renewed: Callable[[float], None]) -> None:
        """Tells `renewed` when the parts were asked to be kept. TransientError where one is not ours any more."""
        asked = now()
        if asked - self._renewed < self.lease_seconds / 3:
            return
        try:
            kept = [self.store.renew_part(part, lease_seconds=self.lease_seconds) for part in self.held.values()]
        except UnavailableError:
            return
        if not all(kept):
            raise fenced(self.job_id)
        self._renewed = asked
        renewed(asked)


@dataclass(slots=True)
class StoreBoard:
    """The board of a job's own attempt."""

    store: JobStore
    claim: Claim
    lease_seconds: float

    def offer(self, parts: Sequence[Part], journal: Journal) -> "OwnParts":
        """Parts that an earlier attempt or its helpers finished in this folder stay done."""
        opened = _patiently(
            lambda: self.store.open_parts(self.claim, journal.fingerprint, len(parts)), self.lease_seconds
        )
        if opened is None:
            raise fenced(self.claim.job.id)
        own = OwnParts(len(parts), journal, _Taken(self.store, self.claim.job.id, self.lease_seconds))
        own.note(opened.done)
        _patiently(lambda: self.store.invite(self.claim.job.id), self.lease_seconds)
        return own


@dataclass(slots=True)
class OwnParts:
    """A PartQueue for the attempt that answers for the whole job: over when all parts are done, by whomever."""

    count: int
    journal: Journal
    taken: _Taken
    _looked: float = field(default_factory=now)

    @property
    def finished(self) -> Mapping[int, Segments]:
        return self.journal.done

    def take(self) -> int | None:
        while (part := self.taken.take()) is not None:
            if part.number not in self.journal.done:
                return part.number
            self.taken.done(part.number, self.journal.done[part.number])
        return None

    def done(self, number: int, segments: Segments) -> None:
        self.taken.done(number, segments)
        self.journal.add(number, segments, synced=True)

    def over(self) -> bool:
        return len(self.journal.done) == self.count

    def tend(self) -> None:
        self.taken.renew(lambda _: None)
        idle = len(self.taken.held) + len(self.journal.done) < self.count and self.taken.waits
        if now() - self._looked > (_ASK_SECONDS if idle else _LOOK_SECONDS):
            self._looked = now()
            self._look()

    def note(self, done: Mapping[int, str]) -> None:
        """What others say that they wrote."""
        for number in done.keys() - self.journal.done.keys():
            self.journal.add(number, segments_of(done[number]), synced=True)

    def _look(self) -> None:
        try:
            found = self.taken.store.parts(self.taken.job_id)
        except UnavailableError:
            return
        if found is None or found.fingerprint != self.journal.fingerprint:
            raise fenced(self.taken.job_id)
        self.note(found.done)


@dataclass(slots=True)
class HelpersParts:
    """A PartQueue for a helper: over when there is no part to be had, or when its time is up."""

    taken: _Taken
    job_fence: int
    permit: Permit
    until: float
    _nothing_left: bool = False
    helped: int = 0

    @classmethod
    def of(cls, store: JobStore, job_id: str, job_fence: int, lease_seconds: float, seconds: float) -> "HelpersParts":
        """For `seconds`, and as long as the parts take that were taken by then."""
        permit = Permit()
        permit.extend(now() + lease_seconds)
        return cls(_Taken(store, job_id, lease_seconds), job_fence, permit, now() + seconds)

    @property
    def time_is_up(self) -> bool:
        """Whether it left parts to others."""
        return now() > self.until and not self._nothing_left

    def take(self) -> int | None:
        if self._nothing_left or self.time_is_up:
            return None
        asked = now()
        part = self.taken.take()
        if part is None:
            self._nothing_left = True
            return None
        if part.job_fence != self.job_fence:
            raise fenced(self.taken.job_id)
        if len(self.taken.held) == 1:
            self._extend(asked)
        self.helped += 1
        if self.helped == 1:
            self.taken.store.invite(self.taken.job_id)
        return part.number

    def done(self, number: int, segments: Segments) -> None:
        self.taken.done(number, segments)

    def over(self) -> bool:
        return not self.taken.held and (self._nothing_left or self.time_is_up)

    def tend(self) -> None:
        self.taken.renew(self._extend)

    def _extend(self, asked: float) -> None:
        """Nothing is written after the leases of what is held are over."""
        self.permit.extend(asked + self.taken.lease_seconds)


def _patiently[T](ask: Callable[[], T], seconds: float) -> T:
    """A store that restarts is waited for."""
    deadline = now() + seconds
    while True:
        try:
            return ask()
        except UnavailableError:
            if now() > deadline:
                raise
            time.sleep(0.2)


def fenced(job_id: str) -> TransientError:
    """The job, or a part of it, is another's now."""
    return TransientError(
        "attempt_lost",
        f"this attempt at parts of {job_id}",
        found="parts that are another's now",
        expected="leases that are renewed in time",
        next_step="Others go on with them; if that repeats, look at the store and at this host's load.",
    )
