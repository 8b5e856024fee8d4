"""The errors that every job store raises or records, in one wording."""

from .errors import (
    BadInputError,
    ConflictError,
    ErrorInfo,
    InternalError,
    NotFoundError,
    TransientError,
)


def job_not_found(job_id: str) -> NotFoundError:
    return NotFoundError(
        "job_not_found",
        f"job {job_id}",
        found="no such job",
        expected="the id of a submitted job",
        next_step="List the jobs with `ferry jobs`.",
    )


def target_reserved(target: str, holder: str) -> ConflictError:
    return ConflictError(
        "target_reserved",
        f"target {target}",
        found=f"a reservation by job {holder}",
        expected="a target that no live job writes",
        next_step=f"Wait for job {holder} or cancel it, or choose another target.",
    )


def idempotency_mismatch(key: str, job_id: str) -> ConflictError:
    return ConflictError(
        "idempotency_mismatch",
        f"idempotency key {key!r}",
        found=f"another request under this key (job {job_id})",
        expected="the same request as before",
        next_step="Send a new key with a new request.",
    )


def bad_cursor(cursor: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"cursor {cursor!r}",
        found="text that is no cursor",
        expected="the `next_cursor` of an earlier page",
        next_step="Start again without a cursor.",
    )


def unreadable_record(job_id: str, why: str) -> InternalError:
    return InternalError(
        "unreadable_record",
        f"the record of job {job_id}",
        found=why,
        expected="what this version of Ferry writes",
        next_step="Cancel the job and submit it again; report this.",
    )


def lease_lost() -> ErrorInfo:
    """What is recorded when a lease ran out; no user's doing, so it counts apart from failures."""
    return TransientError(
        "attempt_lost",
        "the attempt",
        found="no sign of life from its worker until the lease was over",
        expected="a heartbeat",
        next_step="The job is queued again by itself; if it ends here, read the workers' logs.",
    ).info


def not_retryable(job_id: str, state: str) -> ConflictError:
    return ConflictError(
        "not_retryable",
        f"job {job_id}",
        found=f"a job that {state}",
        expected="a job that failed or was cancelled",
        next_step="Submit a new job to do it again.",
    )


def unknown_dependency(job_id: str) -> BadInputError:
    return BadInputError(
        "job_not_found",
        f"depends_on: job {job_id}",
        found="no such job",
        expected="the id of a job that was submitted before",
        next_step="Submit that job first, or leave it out.",
    )


def dependency_ended(job_id: str) -> ConflictError:
    """A job that is to run after one which will not succeed any more."""
    return ConflictError(
        "dependency_failed",
        f"depends_on: job {job_id}",
        found="a job that failed or was cancelled",
        expected="a job that succeeds",
        next_step=f"See `ferry show {job_id}`; retry that job, then this one.",
    )


def newer_record(job_id: str, found: int, known: int) -> InternalError:
    """A record that a newer version wrote: nothing of it may be guessed."""
    return InternalError(
        "newer_record",
        f"job {job_id}",
        found=f"a record of schema version {found}",
        expected=f"version {known} or older, which is what this version of Ferry reads",
        next_step="Upgrade this API or worker; the newer one that wrote it runs beside it.",
    )
