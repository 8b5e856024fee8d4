"""The clients: each hands in one ask as its treatment says, and asks again where an answer is lost."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from api.client import Client
from worker.jobs.errors import ConflictError, FerryError
from worker.jobs.spec import ConfigSpec, JobSpec
from worker.jobs.state import Job

from .asks import Ask, Treatment
from .ledger import Ledger
from .look import state_of
from .stack import until

SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
_CLIENTS = 12
_PATIENCE_SECONDS = 180.0
_LONGEST_WAIT_SECONDS = 6.0
"""Before a client's second request."""


@dataclass(slots=True)
class Clients:
    """Some clients that work at the same time."""

    url: str
    ledger: Ledger
    _own: threading.local = field(default_factory=threading.local)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_CLIENTS, "client"))
    _at_work: "list[Future[None]]" = field(default_factory=list)

    def hand_in(self, ask: Ask) -> None:
        """Leave the ask to the next free client."""
        self._at_work = [work for work in self._at_work if not work.done()]
        self._at_work.append(self._pool.submit(self._treat, ask))

    def busy(self) -> int:
        """Asks that have not been dealt with to the end."""
        return sum(not work.done() for work in self._at_work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _treat(self, ask: Ask) -> None:
        try:
            _TREATMENTS[ask.treatment](self, ask)
        except Exception as error:
            self.ledger.violation(f"client of {ask.target} ({ask.kind.name}): {type(error).__name__}: {error}")

    def submit(self, ask: Ask, key: str | None = None, **more: Any) -> Job:
        """Until the API accepts or refuses it; always under the same key."""
        spec = SPEC.validate_python(ask.spec)
        key = key or f"key-{ask.number}"
        options = {**ask.kind.options, **more}
        job = self._patiently(lambda: self._client().submit(spec, idempotency_key=key, **options))
        self.ledger.requests["accepted"] += 1
        self.ledger.accept(job.id, ask)
        return job

    def cancel(self, job_id: str) -> Job:
        job = self._patiently(lambda: self._client().cancel(job_id))
        self.ledger.cancelled.add(job_id)
        return job

    def retry(self, job_id: str) -> Job:
        return self._patiently(lambda: self._client().retry(job_id))

    def conflict(self, do: Callable[[], Job]) -> ConflictError | None:
        """The 409 that was answered, None where none was."""
        try:
            do()
        except ConflictError as error:
            self.ledger.requests[f"409 {error.info.code}"] += 1
            return error
        return None

    def _client(self) -> Client:
        if not hasattr(self._own, "client"):
            self._own.client = Client(self.url)
        return self._own.client

    def _patiently(self, ask: Callable[[], Job]) -> Job:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return ask()
            except FerryError as error:
                if not error.retryable or time.monotonic() > deadline:
                    raise
                self.ledger.requests["asked again"] += 1
                time.sleep(0.3)


def _plain(clients: Clients, ask: Ask) -> None:
    clients.submit(ask)


def _twice(clients: Clients, ask: Ask) -> None:
    """The same request under the same key is the same job; another one under that key is refused."""
    first = clients.submit(ask)
    time.sleep(ask.patience * _LONGEST_WAIT_SECONDS)
    second = clients.submit(ask)
    if second.id != first.id:
        clients.ledger.violation(f"one Idempotency-Key, two jobs: {first.id} and {second.id}")
    other = replace(ask, kind=replace(ask.kind, spec=ConfigSpec(source="data:large").model_dump(), writes=False))
    refused = clients.conflict(lambda: clients.submit(other))
    if refused is None or refused.info.code != "idempotency_mismatch":
        clients.ledger.violation(f"another request under the key of {first.id}: {refused or 'accepted'}")


def _rival(clients: Clients, ask: Ask) -> None:
    """Of two requests for one target the second is refused, with the name of the first while that one lives."""
    first = clients.submit(ask)
    refused = clients.conflict(lambda: clients.submit(ask, key=f"rival-{ask.number}"))
    code = refused.info.code if refused else "accepted"
    named = refused is not None and first.id in refused.info.message
    published = code == "target_exists" and until(lambda: clients.ledger.ended(first.id), seconds=120)
    if not (code == "target_reserved" and named) and not published:
        clients.ledger.violation(f"a second request for the target of {first.id}: {refused or 'accepted'}")


def _cancelled(clients: Clients, ask: Ask) -> None:
    """At once, a while after it was seen running, or a while after its submission."""
    job = clients.submit(ask)
    if ask.patience > 0.4:
        until(lambda: clients.ledger.running(job.id) or clients.ledger.ended(job.id), seconds=_PATIENCE_SECONDS)
        time.sleep((ask.patience - 0.4) * 3)
    elif ask.patience > 0.2:
        time.sleep((ask.patience - 0.2) * 5)
    clients.cancel(job.id)


def _retried(clients: Clients, ask: Ask) -> None:
    """Cancelled somewhere on its way, and queued again; one that had succeeded by then stays as it is."""
    job = clients.submit(ask)
    time.sleep(ask.patience * _LONGEST_WAIT_SECONDS)
    clients.cancel(job.id)
    until(lambda: clients.ledger.ended(job.id), seconds=_PATIENCE_SECONDS)
    if state_of(clients.ledger.seen[job.id]) == "cancelled":
        clients.ledger.reopen(clients.retry(job.id).model_dump(mode="json"))
    else:
        refused = clients.conflict(lambda: clients.retry(job.id))
        if refused is None or refused.info.code != "not_retryable":
            clients.ledger.violation(f"a retry of {job.id}, which has succeeded: {refused or 'accepted'}")


def _dependent(clients: Clients, ask: Ask) -> None:
    """After another job that will succeed, or has."""
    plain = [job_id for job_id, other in list(clients.ledger.accepted.items()) if other.treatment == "plain"]
    if not plain:
        clients.submit(ask)
        return
    first = plain[-1 - int(ask.patience * min(len(plain), 5))]
    job = clients.submit(ask, depends_on=(first,))
    clients.ledger.after[job.id] = first


def _replacing(clients: Clients, ask: Ask) -> None:
    """What a job published makes way for what a second one publishes."""
    first = clients.submit(replace(ask, treatment="replaced"), key=f"replaced-{ask.number}")
    until(lambda: clients.ledger.ended(first.id), seconds=_PATIENCE_SECONDS)
    clients.submit(ask)


_TREATMENTS: Mapping[Treatment, Callable[[Clients, Ask], None]] = {
    "plain": _plain,
    "replaced": _plain,
    "replacing": _replacing,
    "bad": _plain,
    "twice": _twice,
    "rival": _rival,
    "cancelled": _cancelled,
    "retried": _retried,
    "dependent": _dependent,
}
