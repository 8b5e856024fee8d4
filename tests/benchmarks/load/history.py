"""A history that grows: what a list costs, what the API holds, and how fast its jobs can be drained."""

import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles

from worker.jobs.slots import WorkerSlot
from worker.jobs.state import ConfigResult
from worker.jobs.store import Done, JobFilter
from worker.stores.redis_store import RedisStore

from .clients import ferry, measure
from .server import Server, get, serving

_LISTS = {
    "newest 50": "/v1/jobs?limit=50",
    "queued": "/v1/jobs?state=queued&limit=50",
    "of a kind": "/v1/jobs?kind=config&limit=50",
    "none such": "/v1/jobs?state=failed&limit=50",
}
_LOOKS = 100


def print_history(folder: Path, *, jobs: int, clients: int) -> None:
    """At a tenth of the jobs, at all of them, and when all are drained."""
    with serving(folder, appendfsync="everysec") as server:
        print(f"\nhistory{'':24}{'API MiB':>9}" + "".join(f"{name:>20}" for name in _LISTS) + "   p50/p99 ms")
        _submit(server, jobs // 10, clients)
        _print(f"{jobs // 10} queued", server)
        _submit(server, jobs - jobs // 10, clients)
        _print(f"{jobs} queued", server)
        seconds = _drained(server, clients)
        _print(f"{jobs} drained, {jobs / seconds:.0f}/s", server)


def _submit(server: Server, count: int, clients: int) -> None:
    measure(ferry, server.port, clients=clients, requests=max(1, count // clients - 1))


def _print(title: str, server: Server) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    cells = [
        _cell([_seconds(lambda path=path: get(connection, path)) for _ in range(_LOOKS)]) for path in _LISTS.values()
    ]
    print(f"{title:31}{server.memory_bytes() / 2**20:9.0f}" + "".join(f"{cell:>20}" for cell in cells))


def _seconds(do: Callable[[], object]) -> float:
    before = time.monotonic()
    do()
    return time.monotonic() - before


def _cell(times: Sequence[float]) -> str:
    cuts = quantiles(times, n=100)
    return f"{cuts[49] * 1000:.1f}/{cuts[98] * 1000:.1f}"


def _drained(server: Server, clients: int) -> float:
    """Claims and settles of all jobs by several processes, no work between: the store's part of it."""
    ids = _all_ids(server)
    processes = [
        get_context("fork").Process(target=_drain, args=(server.broker_url, number, ids[number::clients]))
        for number in range(clients)
    ]
    before = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return time.monotonic() - before


def _all_ids(server: Server) -> list[str]:
    store, cursor, ids = RedisStore.from_url(server.broker_url), None, list[str]()
    while True:
        page = store.list(JobFilter(), cursor=cursor, limit=500)
        ids += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            return ids


def _drain(url: str, number: int, ids: Sequence[str]) -> None:
    store = RedisStore.from_url(url)
    slot = WorkerSlot(worker_id=f"drain-{number}", host="bench")
    for job_id in ids:
        claim = store.claim(job_id, slot, lease_seconds=60)
        assert claim is not None
        assert store.settle(claim, Done(result=ConfigResult(megatron_config={"layers": 2})))
