"""Accepting a job: what every way to send one comes to."""

from worker.jobs.spec import JobRequest
from worker.jobs.state import Job

from .job_ids import new_job_id
from .surroundings import Surroundings


def submit(around: Surroundings, body: JobRequest, key: str | None) -> Job:
    """Check what the request says, and store it; the same key and request answer the first job again."""
    # A repeated request must get its job again, although the job's own target stands there by now.
    known = around.store.find(key, body) if key else None
    if known is not None:
        return known
    target = around.check(body.spec, sources_exist=not body.depends_on)
    return around.store.submit(new_job_id(), body, target=str(target) if target else None, idempotency_key=key)


def headers(job: Job) -> dict[str, str]:
    """Of the answer to an accepted job: where to look for it, and how soon."""
    return {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"}
