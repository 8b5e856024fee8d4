"""The errors that every job store raises or records, in one wording."""

from .errors import BadInputError, ConflictError, ErrorInfo, NotFoundError, TransientError


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


def lease_lost() -> ErrorInfo:
    """What is recorded when a lease ran out; no user's doing, so it counts apart from failures."""
    return TransientError(
        "attempt_lost",
        "the attempt",
        found="no sign of life from its worker until the lease was over",
        expected="a heartbeat",
        next_step="The job is queued again by itself; if it ends here, read the workers' logs.",
    ).info
