"""Parts of a job as records of the store: who writes which, which are done, and under which fingerprint."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Parts(BaseModel):
    """How far a job's parts have come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Of spec, source, plan and versions: parts done under another one count for nothing."""
    count: int
    done: dict[int, str]
    """What each finished part left behind (digests and the like), by its number from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartClaim:
    """A worker's time-limited right to write a part, while the attempt that opened the parts lives."""

    job_id: str
    job_fence: int
    number: int
    fence: int
    """Grows with each taking of any of the job's parts."""
