"""A page of jobs, as the API answers it and the client reads it."""

from pydantic import BaseModel

from worker.jobs.errors import ErrorInfo
from worker.jobs.state import Job


class JobList(BaseModel):
    """A page, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None
    """Pass it as `cursor` for the next page; null on the last one."""
    unreadable: tuple[ErrorInfo, ...] = ()
    """Why other jobs of this page are left out: another version of Ferry wrote their records."""
