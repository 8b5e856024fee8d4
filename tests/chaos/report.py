"""What a run found, for people."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .asks import Ask
from .look import Record, state_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finished run."""

    seed: int
    seconds: Mapping[str, float]
    """By phase."""
    jobs: Counter[tuple[str, str, str]]
    """By kind, treatment and final state."""
    requests: Counter[str]
    faults: Counter[str]
    without_victim: Counter[str]
    attempts: Counter[int]
    notes: tuple[str, ...]
    violations: tuple[str, ...]

    def text(self) -> str:
        lines = [
            f"seed {self.seed}",
            "seconds: " + ", ".join(f"{phase} {seconds:.0f}" for phase, seconds in self.seconds.items()),
            f"jobs: {self.jobs.total()}",
            *_table(
                (f"  {kind}, {treatment}", f"{state} {count}")
                for (kind, treatment, state), count in sorted(self.jobs.items())
            ),
            "requests: " + _counted(self.requests),
            f"faults: {self.faults.total()}",
            *_table((f"  {name}", str(count)) for name, count in sorted(self.faults.items())),
            "faults without a victim: " + (_counted(self.without_victim) or "none"),
            "attempts: "
            + ", ".join(f"{count} jobs had {attempts}" for attempts, count in sorted(self.attempts.items())),
            *(f"note: {note}" for note in self.notes),
            f"violations: {len(self.violations)}",
            *(f"  {violation}" for violation in self.violations),
        ]
        return "\n".join(lines)


def jobs_of(accepted: Mapping[str, Ask], records: Mapping[str, Record]) -> Counter[tuple[str, str, str]]:
    return Counter(
        (ask.kind.name, ask.treatment, state_of(records[job_id]) if job_id in records else "unknown")
        for job_id, ask in accepted.items()
    )


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max((len(left) for left, _ in rows), default=0)
    return [f"{left:{width}}  {right}" for left, right in rows]
