"""A claim kept alive: renewed on the store's clock, and given up on our own once it must be over."""

import time
from dataclasses import dataclass, field

from ..engine.permit import Permit, now
from ..jobs.errors import UnavailableError
from ..jobs.state import Progress
from ..jobs.store import Claim, JobStore, Outcome, Verdict
from ..jobs.waiting import WaitsForDisk
from .attempt_lines import Needs

_ASK_AGAIN_SECONDS = 0.2
_SETTLE_SECONDS = 60.0
"""Then the outcome is left to the next claim, which adopts a published output."""


@dataclass(slots=True)
class Lease:
    """The right to work on a job. Time without an answer counts as time of the lease."""

    store: JobStore
    claim: Claim
    seconds: float
    permit: Permit = field(default_factory=Permit)
    """What the attempt's processes may write is over with it."""
    needed_bytes: int = field(default=0, init=False)
    """What its attempt said that it would write."""
    _renewed: float = field(default_factory=now, init=False)

    def __post_init__(self) -> None:
        self._renew(now())

    def renew(self, progress: Progress) -> Verdict:
        """One heartbeat. A store that does not answer means to go on until the lease is over."""
        try:
            return self._heartbeat(progress)
        except UnavailableError:
            return "fenced" if self._over() else "go_on"

    def reserve_disk(self, needs: Needs) -> WaitsForDisk | None:
        """Keep room for the attempt; what it must wait for where there is none. A store that is away keeps nothing."""
        self.needed_bytes = needs.needed_bytes
        try:
            free = self.store.reserve_disk(
                self.claim, needs.filesystem, needed_bytes=needs.needed_bytes, free_bytes=needs.free_bytes
            )
        except UnavailableError:
            return None
        if free is None:
            return None
        return WaitsForDisk(filesystem=needs.filesystem, needed_bytes=needs.needed_bytes, free_bytes=free)

    def publish(self) -> Verdict:
        """The store's word that the job is still ours, before its output appears and no cancel is taken any more."""
        while True:
            asked = now()
            try:
                verdict = self.store.publish(self.claim, lease_seconds=self.seconds)
                self._renew(asked)
                return verdict
            except UnavailableError:
                if self._over():
                    return "fenced"
                time.sleep(_ASK_AGAIN_SECONDS)

    def settle(self, outcome: Outcome) -> bool:
        """Write the outcome, with patience for a store that restarts. False where the claim is stale."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            try:
                return self.store.settle(self.claim, outcome)
            except UnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_ASK_AGAIN_SECONDS)

    def _heartbeat(self, progress: Progress) -> Verdict:
        asked = now()
        verdict = self.store.heartbeat(self.claim, progress, lease_seconds=self.seconds)
        if verdict != "fenced":
            self._renew(asked)
        return verdict

    def _renew(self, asked: float) -> None:
        self._renewed = asked
        self.permit.extend(asked + self.seconds)

    def _over(self) -> bool:
        return now() - self._renewed > self.seconds
