"""Random interleavings of everything that callers may do, on both stores at once: they agree after every step.

The in-memory store is the model of the Redis one; what neither may ever do is an invariant here. Leases either last or
are over at once, so that no step depends on a clock.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.jobs.errors import FerryError, InternalError, TransientError
from worker.jobs.memory_store import MemoryStore
from worker.jobs.parts import PartClaim
from worker.jobs.slots import WorkerSlot
from worker.jobs.spec import ConfigSpec, JobRequest
from worker.jobs.state import TERMINAL, ConfigResult, Job, Progress, Running
from worker.jobs.store import Broken, Claim, Done, JobFilter, JobStore, Limits, Lost, Postponed, Returned, Stopped
from worker.jobs.waiting import WaitsForDisk
from worker.stores.connection import connect
from worker.stores.redis_store import RedisStore

LIMITS = Limits(failures=2, losses=3, retry_delay_seconds=0)
SLOTS = (
    WorkerSlot(worker_id="cpu-1", host="h1"),
    WorkerSlot(worker_id="cpu-2", host="h2"),
    *(WorkerSlot(worker_id=f"gpu-{number}", host="h1", gpu=f"GPU-{number}") for number in range(3)),
)
RETRYABLE = TransientError("io_error", "disk", found="an error", expected="none", next_step="Retry.").info
FATAL = InternalError("internal", "job", found="a bug", expected="none", next_step="Report it.").info
OUTCOMES = (
    Done(result=ConfigResult(megatron_config={"a": 1})),
    Broken(error=RETRYABLE),
    Broken(error=FATAL),
    Lost(error=RETRYABLE),
    Stopped(),
    Returned(),
    Postponed(waiting=WaitsForDisk(filesystem="d", needed_bytes=2, free_bytes=1), seconds=0),
)
LEASES = st.sampled_from([0.0, 3600.0])
TARGETS = st.sampled_from([None, "/a", "/b"])
PICK = st.integers(min_value=0, max_value=999)

_TIMES = {"created_at", "updated_at", "started_at", "lease_expires_at", "not_before", "at", "until", "position"}


def timeless(value: Any) -> Any:
    """What must be the same in both stores: all but times, and places in a queue that messages travel to later."""
    if isinstance(value, dict):
        return {name: timeless(inner) for name, inner in value.items() if name not in _TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def seen(job: Job) -> Any:
    return timeless(json.loads(job.model_dump_json()))


def answer(ask: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "answer", ask()
    except FerryError as error:
        return "error", (error.info.code, error.info.thing)


class Interleavings(RuleBasedStateMachine):
    """Two stores, side by side."""

    broker: EmbeddedBroker

    def __init__(self) -> None:
        super().__init__()
        self.redis = connect(self.broker.url)
        self.redis.flushall()
        self.stores: tuple[JobStore, JobStore] = (MemoryStore(limits=LIMITS), RedisStore(self.redis, limits=LIMITS))
        self.numbers = itertools.count()
        self.jobs: list[str] = []
        self.claims: list[tuple[Claim, Claim]] = []
        self.parts: list[tuple[PartClaim, PartClaim]] = []
        self.fences: dict[str, int] = {}
        self.succeeded: set[str] = set()

    def teardown(self) -> None:
        self.redis.close()

    def both(self, ask: Callable[[JobStore], Any], *, show: Callable[[Any], Any] = lambda found: found) -> list[Any]:
        """The same question to each store; the answers, or errors, must be the same to whoever looks at `show`."""
        (kind, ours), (other_kind, theirs) = (answer(lambda store=store: ask(store)) for store in self.stores)
        assert kind == other_kind, (ours, theirs)
        if kind == "error":
            assert ours == theirs
            return []
        assert show(ours) == show(theirs)
        return [ours, theirs]

    def job(self, pick: int) -> str:
        return self.jobs[pick % len(self.jobs)]

    @rule(
        folder=TARGETS,
        key=st.sampled_from([None, None, "k1", "k2"]),
        gpus=st.sampled_from([0, 0, 0, 1, 2, 4]),
        priority=st.sampled_from(["low", "normal", "high"]),
        after=st.lists(PICK, max_size=2),
    )
    def submit(self, folder: str | None, key: str | None, gpus: int, priority: str, after: list[int]) -> None:
        job_id = f"job_{next(self.numbers)}"
        depends_on = tuple({self.job(pick): None for pick in after}) if self.jobs else ()
        request = JobRequest.model_validate(
            {"spec": ConfigSpec(source="here:a"), "gpus": gpus, "priority": priority, "depends_on": depends_on}
        )
        found = self.both(lambda store: store.submit(job_id, request, target=folder, idempotency_key=key), show=seen)
        if found and found[0].id == job_id:
            self.jobs.append(job_id)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, slot=st.sampled_from(SLOTS), lease=LEASES)
    def claim(self, pick: int, slot: WorkerSlot, lease: float) -> None:
        job_id = self.job(pick)
        ours, theirs = self.both(
            lambda store: store.claim(job_id, slot, lease_seconds=lease),
            show=lambda found: found and (found.fence, found.devices, seen(found.job)),
        )
        if ours is not None:
            assert ours.fence > self.fences.get(job_id, 0), "a fence was given twice"
            self.fences[job_id] = ours.fence
            self.claims.append((ours, theirs))

    @contextmanager
    def held(self, pick: int) -> Iterator[Callable[[JobStore], Claim]]:
        pair = self.claims[pick % len(self.claims)]
        yield lambda store: pair[self.stores.index(store)]

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, done=st.integers(0, 50), lease=LEASES)
    def heartbeat(self, pick: int, done: int, lease: float) -> None:
        with self.held(pick) as mine:
            progress = Progress(phase="copying", done_bytes=done, total_bytes=50)
            self.both(lambda store: store.heartbeat(mine(store), progress, lease_seconds=lease))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, needed=st.integers(0, 100))
    def reserve_disk(self, pick: int, needed: int) -> None:
        with self.held(pick) as mine:
            self.both(lambda store: store.reserve_disk(mine(store), "disk", needed_bytes=needed, free_bytes=100))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, lease=LEASES)
    def publish(self, pick: int, lease: float) -> None:
        with self.held(pick) as mine:
            self.both(lambda store: store.publish(mine(store), lease_seconds=lease))

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, outcome=st.sampled_from(OUTCOMES))
    def settle(self, pick: int, outcome: Any) -> None:
        with self.held(pick) as mine:
            self.both(lambda store: store.settle(mine(store), outcome))

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        self.both(lambda store: store.cancel(self.job(pick)), show=seen)

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK)
    def retry(self, pick: int) -> None:
        self.both(lambda store: store.retry(self.job(pick)), show=seen)

    @rule(slot=st.sampled_from(SLOTS))
    def announce(self, slot: WorkerSlot) -> None:
        self.both(lambda store: store.announce(slot, seconds=3600))

    @rule(slot=st.sampled_from(SLOTS))
    def withdraw(self, slot: WorkerSlot) -> None:
        self.both(lambda store: store.withdraw(slot.worker_id))

    @rule()
    def reap(self) -> None:
        for store in self.stores:
            store.reap()

    @rule()
    def clean(self) -> None:
        self.both(
            lambda store: store.unclean(), show=lambda found: sorted((entry.job.id, entry.fence) for entry in found)
        )
        for store in self.stores:
            for entry in store.unclean():
                store.cleaned(entry)

    @precondition(lambda self: self.claims)
    @rule(pick=PICK, fingerprint=st.sampled_from(["f1", "f2"]), count=st.integers(1, 3))
    def open_parts(self, pick: int, fingerprint: str, count: int) -> None:
        with self.held(pick) as mine:
            self.both(lambda store: store.open_parts(mine(store), fingerprint, count))

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, lease=LEASES)
    def take_part(self, pick: int, lease: float) -> None:
        ours, theirs = self.both(lambda store: store.take_part(self.job(pick), lease_seconds=lease))
        if ours is not None:
            self.parts.append((ours, theirs))

    @precondition(lambda self: self.parts)
    @rule(pick=PICK, renew=st.booleans())
    def end_part(self, pick: int, renew: bool) -> None:
        part, _ = self.parts[pick % len(self.parts)]
        if renew:
            self.both(lambda store: store.renew_part(part, lease_seconds=3600))
        else:
            self.both(lambda store: store.part_done(part, "left"))

    @invariant()
    def both_show_the_same(self) -> None:
        self.both(lambda store: store.slots())
        for job_id in self.jobs:
            self.both(lambda store, job_id=job_id: store.get(job_id), show=seen)
            self.both(lambda store, job_id=job_id: store.parts(job_id))
            self.both(
                lambda store, job_id=job_id: store.events(job_id),
                show=lambda events: [timeless(json.loads(event.model_dump_json())) for event in events],
            )

    @invariant()
    def nothing_impossible_is_there(self) -> None:
        jobs = self.stores[1].list(JobFilter(), limit=500).jobs
        leased = [device for job in jobs if isinstance(job.state, Running) for device in job.state.devices]
        assert len(leased) == len(set(leased)), "a GPU is leased twice"
        assert {job.id for job in jobs} == set(self.jobs), "an accepted job is gone"
        done = {job.id for job in jobs if job.state.state == "succeeded"}
        assert self.succeeded <= done, "a job that had succeeded is something else now"
        self.succeeded = done
        if all(job.state.state in TERMINAL for job in jobs):
            left = {
                key
                for pattern in ("target", "disk", "devices", "hold", "blockers", "parts", "open_parts")
                for key in self.redis.scan_iter(f"ferry:{pattern}:*")
            }
            assert left == set(), "something is reserved for nobody"


@pytest.mark.parametrize("examples", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_both_stores_agree_whatever_is_asked_of_them_in_whatever_order(broker: EmbeddedBroker, examples: int) -> None:
    class OnThisServer(Interleavings):
        pass

    OnThisServer.broker = broker
    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
