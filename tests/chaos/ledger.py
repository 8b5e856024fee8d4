"""What was accepted, what became of it, and what went wrong: written by all threads, read at the end."""

import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from .asks import Ask
from .look import TERMINAL, Look, Record, state_of

_LOOK_SECONDS = 0.4


@dataclass(slots=True)
class Ledger:
    """Accepted means that the API answered 202."""

    accepted: dict[str, Ask] = field(default_factory=dict[str, Ask])
    seen: dict[str, Record] = field(default_factory=dict[str, Record])
    """The last record that a look at a live job answered; of an ended one, the first that said so."""
    errors: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Codes after which a job was seen waiting for its next attempt."""
    cancelled: set[str] = field(default_factory=set[str])
    """Jobs whose cancel the API took."""
    reopened: dict[str, str] = field(default_factory=dict[str, str])
    """When a job that had ended was queued again: what was seen of it before counts no more."""
    after: dict[str, str] = field(default_factory=dict[str, str])
    """The job that each dependent one waits for."""
    requests: Counter[str] = field(default_factory=Counter[str])
    violations: list[str] = field(default_factory=list[str])

    def accept(self, job_id: str, ask: Ask) -> None:
        other = self.accepted.setdefault(job_id, ask)
        if other is not ask:
            self.violation(f"{job_id} was answered to two requests, for {other.target} and for {ask.target}")

    def violation(self, text: str) -> None:
        self.violations.append(text)

    def reopen(self, record: Record) -> None:
        """It was queued again after its end."""
        self.reopened[record["id"]] = record["updated_at"]
        self.seen[record["id"]] = record

    def see(self, record: Record) -> None:
        if record["updated_at"] < self.reopened.get(record["id"], ""):
            return
        self.seen[record["id"]] = record
        last_error = record["state"].get("last_error")
        if last_error is not None:
            self.errors[record["id"]].add(last_error["code"])

    def live(self) -> list[str]:
        return [job_id for job_id in list(self.accepted) if not self.ended(job_id)]

    def ended(self, job_id: str) -> bool:
        return state_of(self.seen[job_id]) in TERMINAL if job_id in self.seen else False

    def running(self, job_id: str) -> bool:
        return job_id in self.seen and state_of(self.seen[job_id]) == "running"


@dataclass(slots=True)
class Onlooker:
    """Looks at every live job about twice a second, in a thread."""

    ledger: Ledger
    url: str
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._look_on, name="onlooker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)

    def _look_on(self) -> None:
        with Look(self.url) as look:
            while not self._stop.wait(_LOOK_SECONDS):
                for job_id in self.ledger.live():
                    try:
                        self.ledger.see(look.job(job_id))
                    except TimeoutError as error:
                        self.ledger.violation(str(error))
                    except Exception as error:
                        self.ledger.violation(f"a look at {job_id}: {type(error).__name__}: {error}")
