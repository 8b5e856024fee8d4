"""The end's examination: every violation, one line each."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .asks import Ask
from .kinds import reference
from .ledger import Ledger
from .logs import Logs
from .look import TERMINAL, Record, state_of
from .outputs import read_manifest, wrong_with
from .store_left import Counts
from .targets import TargetWatch, inode

_PARTIAL = ".partial-"
_ENDS = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found when all had ended, or time was up."""

    root: Path
    ledger: Ledger
    records: Mapping[str, Record]
    """Of all jobs that the service knows, the references included."""
    references: Mapping[str, Record]
    """By their kind's name."""
    counts: Mapping[str, Counts]
    logs: Logs
    watch: TargetWatch


def violations(evidence: Evidence) -> Iterator[str]:
    """Of the jobs and what they wrote."""
    yield from evidence.ledger.violations
    yield from _unknown_jobs(evidence)
    for job_id, ask in evidence.ledger.accepted.items():
        record = evidence.records.get(job_id)
        if record is None:
            yield f"{job_id} was accepted and is not known any more"
            continue
        for wrong in _wrong_with(evidence, job_id, ask, record):
            yield f"{job_id} ({ask.treatment} {ask.kind.name}, {ask.target}): {wrong}"
    if evidence.watch.missed:
        yield "the watch over the root missed events: the harness's own fault"


def partial_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if _PARTIAL in path.name)


def _unknown_jobs(evidence: Evidence) -> Iterator[str]:
    """A request that was sent again must not have become two jobs."""
    expected = evidence.ledger.accepted.keys() | {record["id"] for record in evidence.references.values()}
    for job_id in sorted(evidence.records.keys() - expected):
        yield f"{job_id} is a job that nobody was told of: {evidence.records[job_id]['request']['spec']}"


_APART = ("target", "timings", "seconds", "resumed_bytes")


def _wrong_with(evidence: Evidence, job_id: str, ask: Ask, record: Record) -> Iterator[str]:
    state = state_of(record)
    if state not in ask.may_end:
        yield f"ended as {_end(record)}, not {' or '.join(sorted(ask.may_end))}; {_history(evidence, job_id)}"
    if state == "failed" and ask.code and record["state"]["error"]["code"] != ask.code:
        yield f"failed with {record['state']['error']}, not {ask.code}"
    seen = evidence.ledger.seen.get(job_id)
    if seen is not None and state_of(seen) in TERMINAL and seen != record:
        yield f"changed after its end: from {seen['state']} to {record['state']}"
    yield from _wrong_attempts(evidence, job_id, ask, record)
    yield from _wrong_order(evidence, job_id)
    if ask.kind.writes:
        yield from _wrong_output(evidence, ask, record)
    elif state == "succeeded" and _same(record) != _same(evidence.references[ask.kind.name]):
        yield "answered something else than undisturbed"


def _wrong_attempts(evidence: Evidence, job_id: str, ask: Ask, record: Record) -> Iterator[str]:
    outcomes = evidence.logs.outcomes.get(job_id, Counter[str]())
    if outcomes["Done"] > 1:
        yield f"settled as done {outcomes['Done']} times"
    counts = evidence.counts[job_id]
    yield from _stale_settlers(evidence, job_id)
    gone = counts.losses + counts.failures + outcomes["Returned"] + outcomes["Postponed"]
    retried = ask.code in evidence.ledger.errors[job_id]
    if ask.treatment == "bad" and (retried or record["attempts"] > 1 + gone):
        yield f"bad input was tried again; {_history(evidence, job_id)}"
    if counts.events is not None:
        names = Counter(event["event"] for event in counts.events)
        if sum(names[end] for end in _ENDS) != 1 + names["retried"]:
            yield f"ended more than once, or not at all; {_history(evidence, job_id)}"
        if names["claimed"] != record["attempts"]:
            yield f"{record['attempts']} attempts, {names['claimed']} claims; {_history(evidence, job_id)}"


_ENDINGS: Mapping[str, frozenset[str]] = {
    "Done": frozenset({"succeeded"}),
    "Stopped": frozenset({"cancelled"}),
    "Broken": frozenset({"broken", "failed", "cancelled"}),
    "Lost": frozenset({"lost", "failed", "cancelled"}),
    "Returned": frozenset({"returned", "cancelled"}),
    "Postponed": frozenset({"waits", "cancelled"}),
}
"""What a history says of an attempt that settled so."""


def _stale_settlers(evidence: Evidence, job_id: str) -> Iterator[str]:
    """An attempt that lost its job must not be able to end it: not even as its successor would."""
    told = {(event["attempt"], event["event"]) for event in evidence.counts[job_id].events or ()}
    for attempt, outcome in sorted(evidence.logs.settled.get(job_id, ())):
        if told and not any((attempt, event) in told for event in _ENDINGS[outcome]):
            yield f"attempt {attempt} settled it ({outcome}) when it was another's; {_history(evidence, job_id)}"


def _wrong_order(evidence: Evidence, job_id: str) -> Iterator[str]:
    first = evidence.ledger.after.get(job_id)
    if first is None:
        return
    ended = [event["at"] for event in evidence.counts[first].events or () if event["event"] == "succeeded"]
    claimed = [event["at"] for event in evidence.counts[job_id].events or () if event["event"] == "claimed"]
    if ended and claimed and claimed[0] < ended[0]:
        yield f"started {ended[0] - claimed[0]} ms before {first} had succeeded, which it depends on"


def _wrong_output(evidence: Evidence, ask: Ask, record: Record) -> Iterator[str]:
    folder, happened = evidence.root / ask.target, evidence.watch.events.get(ask.target, [])
    if state_of(record) != "succeeded":
        if inode(folder) or happened:
            yield f"left something at its target: {happened}"
        return
    if ask.treatment == "replaced":
        return  # The one in its place is looked at.
    expected = Counter({"appeared": 2, "moved away": 1}) if ask.treatment == "replacing" else Counter({"appeared": 1})
    if Counter(happened) != expected:
        yield f"its target was not published once: {happened}"
    if not inode(folder):
        yield "has no output"
        return
    if (inode(folder) == evidence.watch.inodes.get(ask.target)) == (ask.treatment == "replacing"):
        yield "the first that stood at its target is not where it should be"
    yield from wrong_with(folder, evidence.root / reference(ask.kind))
    yield from _wrong_result(evidence, folder, ask, record)


def _wrong_result(evidence: Evidence, folder: Path, ask: Ask, record: Record) -> Iterator[str]:
    manifest, result = read_manifest(folder), record["state"]["result"]
    reference = evidence.references[ask.kind.name]
    if manifest["job"] != record["id"]:
        yield f"its target is {manifest['job']}'s"
    if manifest["result"] != result:
        yield f"its result {result} is not its manifest's {manifest['result']}"
    if _same(record) != _same(reference):
        yield f"its result {result} is not that of the undisturbed {reference['state']['result']}"


def _same(record: Record) -> dict[str, Any]:
    """Of a result, what every run of its kind has."""
    return {name: value for name, value in record["state"]["result"].items() if name not in _APART}


def _end(record: Record) -> str:
    error = record["state"].get("error") or record["state"].get("last_error")
    return state_of(record) + (f" ({error['code']}: {error['thing']}: {error['found']})" if error else "")


def _history(evidence: Evidence, job_id: str) -> str:
    counts = evidence.counts[job_id]
    told = f"attempts {evidence.records[job_id]['attempts']}, failures {counts.failures}, losses {counts.losses}"
    events = [f"{event['event']}#{event['attempt']}" for event in counts.events or ()]
    logged = dict(evidence.logs.outcomes.get(job_id, {}))
    return f"{told}, settled {logged}" + (f", events {' '.join(events)}" if events else "")
