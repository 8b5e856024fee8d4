"""A page of jobs, as the API answers it and the client reads it."""

from pydantic import BaseModel

from worker.jobs.state import Job


class JobList(BaseModel):
    """A page, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Pass it as `cursor` for the next page; null on the last one."""
