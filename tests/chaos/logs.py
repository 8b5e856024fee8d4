"""What the services' logs tell: how often each job was settled, and the exceptions that nobody foresaw."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

_SETTLED = re.compile(r"job_settled job=(\S+) attempt=(\d+) outcome=(\w+)\(")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Full)): ?(.{0,90})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """Settled outcomes by job, and the last lines of tracebacks with their number."""

    outcomes: dict[str, Counter[str]]
    settled: dict[str, set[tuple[int, str]]]
    """Which attempts did, by job."""
    exceptions: Counter[str]
    adopted: int


def read_logs(folder: Path) -> Logs:
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    settled: defaultdict[str, set[tuple[int, str]]] = defaultdict(set)
    exceptions: Counter[str] = Counter()
    adopted = 0
    for path in sorted(folder.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            adopted += "output_adopted" in line
            if found := _SETTLED.search(line):
                outcomes[found[1]][found[3]] += 1
                settled[found[1]].add((int(found[2]), found[3]))
            elif found := _EXCEPTION.match(line):
                exceptions[f"{path.stem.rstrip('-0123456789')}: {found[1]}: {_without_numbers(found[2])}"] += 1
    return Logs(outcomes=dict(outcomes), settled=dict(settled), exceptions=exceptions, adopted=adopted)


def _without_numbers(text: str) -> str:
    return re.sub(r"job_\w+|\d+", "_", text)
