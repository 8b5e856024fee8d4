"""What the embedded store holds when every job is terminal, read past the API: nothing that only a live job needs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis

# Records, their indexes and histories stay until their retention. Anything else that is a job's must be gone.
_STAYS = ("jobs", "job:", "state:", "kind:", "label:", "events:", "idempotency:", "sequence", "messages", "ended")
_OF_SLOTS = ("classes", "slots", "slot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a record counts beside its attempts; `events` is None where the store keeps no history."""

    failures: int
    losses: int
    events: tuple[dict[str, Any], ...] | None


def left_in_the_store(broker: Redis) -> Iterator[str]:
    """Leases, reservations, messages: one line for each."""
    keys: list[str] = sorted(broker.scan_iter(count=1000))
    for key in keys:
        _, ours, name = key.partition("ferry:")
        if ours and not name.startswith(_STAYS) and name not in _OF_SLOTS:
            yield f"the store keeps {key} ({_content(broker, key)})"
        if key.startswith("ferry") and not ours:
            yield f"the broker's queue {key!r} holds {broker.llen(key)} messages"
    for state in ("queued", "running"):
        for job_id in broker.zrange(f"ferry:state:{state}", 0, -1):
            yield f"{job_id} stands among the {state}"


def unacknowledged(broker: Redis) -> int:
    """Messages that kombu keeps for workers that died; harmless, and told as such."""
    return broker.hlen("unacked")


def counts_of(broker: Redis, job_id: str) -> Counts:
    record = broker.hgetall(f"ferry:job:{job_id}")
    lines: list[str] = broker.lrange(f"ferry:events:{job_id}", 0, -1)
    return Counts(
        failures=int(record.get("failures", 0)),
        losses=int(record.get("losses", 0)),
        events=tuple(map(json.loads, lines)) if lines else None,
    )


def _content(broker: Redis, key: str) -> str:
    match broker.type(key):
        case "string":
            return str(broker.get(key))
        case "zset":
            return str(broker.zrange(key, 0, 4))
        case "hash":
            return str(dict(list(broker.hgetall(key).items())[:5]))
        case "list":
            return str(broker.lrange(key, 0, 4))
        case other:
            return str(other)
