"""One run from an empty folder to a report: references, chaos, silence, examination."""

import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random

from redis.exceptions import RedisError

from api.client import Client

from . import mutants
from .asks import Ask, draw
from .checks import Evidence, partial_folders, violations
from .disk import Disk, leave_mounts_of_others
from .faults import FAULTS, Ground, Striker
from .kinds import KINDS, reference, spec_of
from .ledger import Ledger, Onlooker
from .logs import read_logs
from .look import Look, Record, state_of
from .report import Report, jobs_of
from .sources import write_sources
from .stack import LEASE_SECONDS, Stack, until
from .store_left import Counts, counts_of, left_in_the_store, unacknowledged
from .submitting import SPEC, Clients
from .targets import TargetWatch

_BYTES_A_JOB = 6 * 2**20
_LEAST_PAUSE_SECONDS = 0.4
"""Between two faults: more often would be one fault."""
_WAITING_FOR_A_WORKER = 8
"""Live jobs for each worker: enough that none idles, few enough that submissions go on under the faults."""
_SETTLING_SECONDS = 30
_LOOSE_ENDS_SECONDS = 20
_SUSPECTS_KEPT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the command line asked for."""

    jobs: int
    faults: int
    seconds: float
    seed: int
    workers: int
    without: list[str]
    """Faults that are left out."""
    mutant: str | None = None
    """A fault in the code, which the run must find."""


@dataclass(slots=True)
class Run:
    """The stack under test, with everything around it."""

    plan: Plan
    folder: Path
    stack: Stack
    striker: Striker
    watch: TargetWatch
    ledger: Ledger = field(default_factory=Ledger)
    references: dict[str, Record] = field(default_factory=dict[str, Record])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    loose: list[str] = field(default_factory=list[str])
    """Violations of the stack as a whole."""
    notes: list[str] = field(default_factory=list[str])

    @classmethod
    def prepared(cls, plan: Plan) -> "Run":
        private = leave_mounts_of_others()
        folder = Path(tempfile.mkdtemp(prefix="ferry-chaos-"))
        mutant = mutants.make(plan.mutant, folder / "mutant") if plan.mutant else None
        stack = Stack(folder=folder, workers=plan.workers, mutant=mutant)
        stack.root.mkdir()
        disk = Disk(stack.root, (plan.jobs + 2 * plan.workers) * _BYTES_A_JOB + 2**28) if private else None
        if disk is not None:
            disk.mount()
        write_sources(stack.root)
        faults = tuple(name for name in FAULTS if name not in plan.without)
        watch = TargetWatch(stack.root)
        striker = Striker(Ground(stack, disk, watch, Random(f"faults {plan.seed}")), faults)
        return cls(plan=plan, folder=folder, stack=stack, striker=striker, watch=watch)

    def go(self) -> Report:
        """All phases. The stack is stopped in the end, whatever happens."""
        say(f"seed {self.plan.seed}, folder {self.folder}")
        started = time.monotonic()
        try:
            self.stack.start()
            self.watch.start()
            self._make_references()
            self.seconds["preparing"] = time.monotonic() - started
            self._disturb()
            evidence = self._gather()
        finally:
            self.striker.ground.mend()
            self._stop()
        return self._report(evidence)

    def keep(self, report: Report) -> None:
        """What explains a bad run. The private disk vanishes with this process: suspect folders are copied off it."""
        (self.folder / "report.txt").write_text(report.text())
        struck = (f"{datetime.fromtimestamp(at)} {name}\n" for at, name in self.striker.log)
        (self.folder / "faults.txt").write_text("".join(struck))
        (self.folder / "jobs.json").write_text(json.dumps(self.ledger.seen, indent=1))
        suspect = [folder for folder in self.stack.root.iterdir() if _is_named(folder.name, report.violations)]
        for folder in suspect[:_SUSPECTS_KEPT]:
            shutil.copytree(folder, self.folder / "suspect" / folder.name, symlinks=True)

    def remove(self) -> None:
        """Nothing is left of a good run."""
        if self.striker.ground.disk is not None:
            self.striker.ground.disk.unmount()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_references(self) -> None:
        with Client(self.stack.url) as client:
            for kind in KINDS:
                job = client.wait(client.submit(SPEC.validate_python(spec_of(kind, reference(kind)))).id)
                if job.state.state != "succeeded":
                    raise RuntimeError(f"undisturbed {kind.name} ended as {job.state}")
                self.references[kind.name] = job.model_dump(mode="json")

    def _disturb(self) -> None:
        started = time.monotonic()
        clients, onlooker = Clients(self.stack.url, self.ledger), Onlooker(self.ledger, self.stack.url)
        onlooker.start()
        asks = draw(self.plan.jobs, Random(f"jobs {self.plan.seed}"))
        deadline = started + self.plan.seconds
        struck = said = started
        while (asks or clients.busy() or self.ledger.live()) and time.monotonic() < deadline:
            now = time.monotonic()
            self.striker.ground.keep()
            self._feed(asks, clients)
            if now - struck > _LEAST_PAUSE_SECONDS and self._fault_due(now - started):
                self.striker.strike()
                struck = time.monotonic()
            if now - said > 15:
                said = now
                say(self._progress(now - started))
            if self.stack.exit_code() is not None:
                self.loose.append(f"`ferry up` ended by itself with exit code {self.stack.exit_code()}")
                break
            time.sleep(0.05)
        self.seconds["disturbed"] = time.monotonic() - started
        self.striker.ground.mend()
        clients.close()
        # What was just thawed must do no more harm, and the last looks must be taken.
        time.sleep(2 * LEASE_SECONDS)
        onlooker.stop()

    def _feed(self, asks: list[Ask], clients: Clients) -> None:
        room = _WAITING_FOR_A_WORKER * self.plan.workers - len(self.ledger.live()) - clients.busy()
        for _ in range(min(room, len(asks))):
            clients.hand_in(asks.pop())

    def _fault_due(self, elapsed: float) -> bool:
        """As many faults as jobs have ended, in proportion; and some in any case as time goes by."""
        ended = (len(self.ledger.accepted) - len(self.ledger.live())) / max(self.plan.jobs, 1)
        gone = max(ended / 0.9, elapsed / (0.7 * self.plan.seconds))
        return self.striker.done.total() < self.plan.faults * min(gone, 1.0)

    def _gather(self) -> Evidence:
        if until(lambda: self._healthy(), seconds=_SETTLING_SECONDS) is None:
            self.loose.append(f"the service is not ready {_SETTLING_SECONDS} s after the last fault")
        with Look(self.stack.url) as look:
            records = {record["id"]: record for record in look.jobs()}
        until(lambda: not self._loose_ends(), seconds=_LOOSE_ENDS_SECONDS)
        self.loose += self._loose_ends()
        with self.stack.broker() as broker:
            counts = {job_id: counts_of(broker, job_id) for job_id in self.ledger.accepted}
            self.notes.append(f"{unacknowledged(broker)} messages of dead workers, kept by kombu")
        return self._evidence(records, counts)

    def _evidence(self, records: dict[str, Record], counts: dict[str, Counts]) -> Evidence:
        return Evidence(
            root=self.stack.root,
            ledger=self.ledger,
            records=records,
            references=self.references,
            counts=counts,
            logs=read_logs(self.stack.data / "logs"),
            watch=self.watch,
        )

    def _healthy(self) -> bool:
        with suppress(Exception), Look(self.stack.url, patience_seconds=1) as look:
            look.job(next(iter(self.references.values()))["id"])
            return True
        return False

    def _loose_ends(self) -> list[str]:
        """What must go away soon after the last job's end."""
        found = [f"left in the root: {name}" for name in partial_folders(self.stack.root)]
        try:
            with self.stack.broker() as broker:
                found += left_in_the_store(broker)
        except RedisError as error:
            found.append(f"the store does not answer: {error}")
        return found

    def _stop(self) -> None:
        started = time.monotonic()
        code = self.stack.stop()
        if code != 0:
            self.loose.append(f"`ferry up` stopped with exit code {code} (None: it had to be killed)")
        until(lambda: not self.stack.left(), seconds=5)
        for process in self.stack.left():
            with suppress(Exception):
                self.loose.append(f"process {process.pid} outlived the stack: {' '.join(process.cmdline())[:200]}")
                process.kill()
        self.seconds["stopping"] = time.monotonic() - started

    def _report(self, evidence: Evidence) -> Report:
        found = [*violations(evidence), *self.loose]
        notes = [*self.notes, f"{evidence.logs.adopted} outputs of lost attempts, adopted by the next"]
        notes += [f"{count} x {text}" for text, count in evidence.logs.exceptions.most_common(12)]
        if self.striker.ground.disk is None:
            notes.append("no disk was filled: this user may not mount one")
        return Report(
            seed=self.plan.seed,
            seconds=self.seconds,
            jobs=jobs_of(self.ledger.accepted, evidence.records),
            requests=self.ledger.requests,
            faults=self.striker.done,
            without_victim=self.striker.without_victim,
            attempts=Counter(
                evidence.records[job_id]["attempts"] for job_id in self.ledger.accepted if job_id in evidence.records
            ),
            notes=tuple(notes),
            violations=tuple(found),
        )

    def _progress(self, elapsed: float) -> str:
        states = Counter(map(state_of, list(self.ledger.seen.values())))
        struck, accepted = self.striker.done.total(), len(self.ledger.accepted)
        return f"{elapsed:4.0f} s  {struck} faults, {accepted} accepted, {dict(states)}"


def _is_named(folder: str, violations: Iterable[str]) -> bool:
    return any(folder in re.findall(r"[\w.-]+", violation) for violation in violations)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
