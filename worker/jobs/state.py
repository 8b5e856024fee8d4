"""Where a job is: a union on `state`, each member carrying only what is true in it, and the legal moves."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from .errors import ErrorInfo
from .spec import JobRequest
from .waiting import Waiting

SCHEMA_VERSION = 3
"""Of a job's record. Older ones are read; newer ones are refused (`newer_record`)."""

StateName = Literal["queued", "running", "succeeded", "failed", "cancelled"]

MOVES: dict[StateName, frozenset[StateName]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"queued", "succeeded", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}
"""The legal moves. A queued job fails with one that it depends on; failed and cancelled ones can be retried by hand."""

TERMINAL: frozenset[StateName] = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job leaves by a user's `retry` alone, if at all."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Progress(_Frozen):
    """How far an attempt has come; bytes of tensor data."""

    phase: Literal["planning", "copying", "reading", "verifying", "finalizing"] = "planning"
    done_bytes: int = 0
    total_bytes: int = 0


class ConfigResult(_Frozen):
    """`megatron_config` is `GPTModelConfig.as_dict()`, JSON-safe, activation by name."""

    kind: Literal["config"] = "config"
    megatron_config: dict[str, Any]


class Timings(_Frozen):
    """Seconds of one attempt, from the start of its process."""

    plan_seconds: float
    copy_seconds: float
    finalize_seconds: float


class Apart(_Frozen):
    """How far two models' logits are from each other, in fp32 on the same tokens."""

    max_abs_difference: float
    range: float
    """From the least to the largest of the first one's logits."""
    cosine: float
    """The least of all places."""
    top1_agreement: float
    """The part of places at which both choose the same token, ties within the difference included."""


class RoundedApart(Apart):
    """The same where one side's weights were rounded as the other stores its own."""

    side: Literal[0, 1]
    """Which was rounded."""
    moved: float
    """The largest difference that this alone makes to its logits."""


class LogitsFigures(Apart):
    """Of the two as they are; and what was asked of them."""

    rounded: RoundedApart | None = None
    bar: str = ""
    """What was judged, and why so."""


class Verified(_Frozen):
    """What was checked before the output was published."""

    tensors: int | None = None
    """How many were read again and are as the source says."""
    logits: LogitsFigures | None = None
    loaded_by: int | None = None
    """How many processes loaded the checkpoint, at the run's parallelism."""


class CheckpointResult(_Frozen):
    """A published folder; its manifest tells the rest."""

    kind: Literal["import", "export", "merge", "adapter", "setup"]
    target: str
    tensors: int
    bytes: int
    resumed_bytes: int = 0
    """Of them, what an earlier attempt had written already."""
    touched: int = 0
    """Of the tensors, those that adapters changed; the manifest names each with the norm of its change."""
    relative_error: float | None = None
    """Of an extracted adapter: what it leaves of the difference; the manifest says so for each tensor."""
    plan_digest: str
    timings: Timings
    verified: Verified | None = None


class VerifyResult(_Frozen):
    """What was read is as it should be, or makes models that say the same."""

    kind: Literal["verify"] = "verify"
    files: int
    tensors: int
    bytes: int
    """Read, of both sides where two were compared."""
    seconds: float
    differing: int = 0
    """Tensors that are not the same in both, which only models that say the same may have."""
    first_differing: tuple[str, ...] = ()
    """The first names of them."""
    logits: LogitsFigures | None = None


Result = Annotated[ConfigResult | CheckpointResult | VerifyResult, Field(discriminator="kind")]


class Queued(_Frozen):
    """Waiting, and why; after a failed or lost attempt, `last_error` says what happened."""

    state: Literal["queued"] = "queued"
    waiting: Waiting
    not_before: AwareDatetime | None = None
    last_error: ErrorInfo | None = None


class Running(_Frozen):
    """Held by one worker until its lease ends."""

    state: Literal["running"] = "running"
    worker_id: str
    host: str = ""
    devices: tuple[str, ...] = ()
    """UUIDs of the GPUs that are leased to it."""
    attempt: int
    started_at: AwareDatetime
    lease_expires_at: AwareDatetime
    progress: Progress = Progress()
    cancel_requested: bool = False
    publishing: bool = False
    """Past the point where it can be cancelled."""


class Succeeded(_Frozen):
    """Done; the output is published."""

    state: Literal["succeeded"] = "succeeded"
    result: Result


class Failed(_Frozen):
    """Ended without output; `error` says why and what to do."""

    state: Literal["failed"] = "failed"
    error: ErrorInfo


class Cancelled(_Frozen):
    """Ended by request; nothing was published."""

    state: Literal["cancelled"] = "cancelled"


JobState = Annotated[Queued | Running | Succeeded | Failed | Cancelled, Field(discriminator="state")]


class Job(_Frozen):
    """A job as the store keeps it and the API shows it."""

    schema_version: int = SCHEMA_VERSION
    id: str
    request: JobRequest
    state: JobState
    attempts: int = 0
    """Claims so far."""
    created_at: AwareDatetime
    updated_at: AwareDatetime
