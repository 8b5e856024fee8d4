"""Submissions per second through the API, against bare Celery and bare LPUSH on the same server in the same run."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from .clients import Leg, Send, celery, ferry, lpush, measure
from .server import serving


def print_submit_rates(folder: Path, *, clients: int, requests: int, rounds: int) -> None:
    """Rounds of all three, one after the other, for each way to keep the append-only file."""
    for appendfsync in ("everysec", "always"):
        with serving(folder, appendfsync=appendfsync) as server:
            path = server.broker_url.removeprefix("redis+socket://")
            legs: dict[str, tuple[Callable[..., Send], object]] = {
                "LPUSH": (lpush, path),
                "Celery delay": (celery, path),
                "Ferry, HTTP": (ferry, server.port),
            }
            found: dict[str, list[Leg]] = {name: [] for name in legs}
            for _ in range(rounds):
                for name, (connect, given) in legs.items():
                    found[name].append(measure(connect, given, clients=clients, requests=requests))
                server.redis.flushall()
        _print(f"appendfsync {appendfsync}, {clients} clients, medians of {rounds}", found)


def _print(title: str, found: dict[str, list[Leg]]) -> None:
    print(f"\n{title}\n{'':14}{'per s':>9}{'of Celery':>11}{'p50 ms':>9}{'p99 ms':>9}")
    ratios = [
        ours.per_second / theirs.per_second
        for ours, theirs in zip(found["Ferry, HTTP"], found["Celery delay"], strict=True)
    ]
    bare = median(leg.per_second for leg in found["Celery delay"])
    for name, legs in found.items():
        rate = median(leg.per_second for leg in legs)
        p50, p99 = median(leg.p50_ms for leg in legs), median(leg.p99_ms for leg in legs)
        print(f"{name:14}{rate:9.0f}{rate / bare:11.2f}{p50:9.2f}{p99:9.2f}")
    print(f"Ferry of Celery, round by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
