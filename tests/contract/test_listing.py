"""Listing many jobs in Redis: a page looks at a bounded number of them, and pages together miss none."""

import pytest

from worker.dispatch.embedded_broker import EmbeddedBroker
from worker.jobs.spec import ConfigSpec, ImportSpec, JobRequest
from worker.jobs.store import JobFilter
from worker.stores import redis_store
from worker.stores.redis_store import RedisStore


def test_a_filter_that_matches_little_gives_short_pages_and_misses_nothing(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "_LOOKED_AT", 4)
    store = RedisStore.from_url(broker.url)
    for number in range(21):
        odd = JobRequest(spec=ConfigSpec(source="here:a"), labels={"team": "blue"})
        even = JobRequest(spec=ImportSpec(source="here:a", target="here:b"), labels={"team": "blue"})
        store.submit(f"job_{number}", even if number % 10 == 0 else odd)
    for number in range(21, 42):
        store.submit(f"job_{number}", JobRequest(spec=ImportSpec(source="here:a", target="here:b")))

    pages: list[list[str]] = []
    cursor = None
    while cursor is not None or not pages:
        page = store.list(JobFilter(kind="import", label=("team", "blue")), cursor=cursor, limit=2)
        pages.append([job.id for job in page.jobs])
        cursor = page.next_cursor

    assert [job_id for page in pages for job_id in page] == ["job_20", "job_10", "job_0"]
    assert len(pages) == 6  # 21 labelled jobs, four at a time
