"""What happened to a job, in order: its history, which survives restarts."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from .errors import ErrorInfo

EventName = Literal[
    "submitted",
    "claimed",
    "lost",
    "broken",
    "returned",
    "waits",
    "publishing",
    "cancel_requested",
    "retried",
    "succeeded",
    "failed",
    "cancelled",
]
"""`lost`, `broken`, `returned` and `waits` end an attempt and leave the job queued."""

KEPT_EVENTS = 500
"""A job's latest; older ones are dropped."""


class JobEvent(BaseModel):
    """One event; `number` grows from 1 without gaps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    at: AwareDatetime
    event: EventName
    attempt: int
    """Claims so far."""
    worker_id: str | None = None
    host: str | None = None
    devices: tuple[str, ...] | None = None
    """UUIDs of the GPUs that the attempt leased; None where the event says nothing of them."""
    error: ErrorInfo | None = None
