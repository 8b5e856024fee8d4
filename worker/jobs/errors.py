"""Every error a user can meet: one class for each thing a caller can do about it."""

import errno
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

ErrorCode = Literal[
    # bad input: mend the request or the source
    "bad_request",
    "bad_location",
    "missing_file",
    "bad_header",
    "bad_checkpoint",
    "bad_config",
    "unknown_family",
    "unknown_config_field",
    "unsupported_config_value",
    "unknown_tensor",
    "missing_tensor",
    "bad_tensor",
    "source_changed",
    "not_verified",
    # conflict: something else holds the name
    "target_exists",
    "target_reserved",
    "idempotency_mismatch",
    "not_retryable",
    "dependency_failed",
    # not found
    "job_not_found",
    # the service's side
    "disk_full",
    "io_error",
    "attempt_lost",
    "out_of_memory",
    "wrong_devices",
    "timed_out",
    "stalled",
    "newer_record",
    "unreadable_record",
    "store_unavailable",
    "internal",
]


class ErrorInfo(BaseModel):
    """An error as data: what a job record keeps and a problem document shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: ErrorCode
    thing: str
    found: str
    expected: str
    next_step: str
    status: int
    retryable: bool

    @property
    def message(self) -> str:
        """One sentence for a person: the thing, what was found, what was expected, the next step."""
        return f"{self.thing}: found {self.found}, expected {self.expected}. {self.next_step}"


class FerryError(Exception):
    """Base of all errors that Ferry raises on purpose; `info` is what users see."""

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, code: ErrorCode, thing: str, *, found: str, expected: str, next_step: str) -> None:
        self.info = ErrorInfo(
            code=code,
            thing=thing,
            found=found,
            expected=expected,
            next_step=next_step,
            status=self.status,
            retryable=self.retryable,
        )
        super().__init__(self.info.message)


class BadInputError(FerryError):
    """The request or its source is wrong; mend it. Never retried."""

    status = 422


class ConflictError(FerryError):
    """The name is taken, or the job is past that step; choose another. Never retried."""

    status = 409


class NotFoundError(FerryError):
    """There is no such thing; check the name. Never retried."""

    status = 404


class TransientError(FerryError):
    """The surroundings failed (disk, memory, a lost process); the same job may succeed later."""

    status = 503
    retryable = True


class UnavailableError(FerryError):
    """The job store or the server cannot be reached now; try again."""

    status = 503
    retryable = True


class InternalError(FerryError):
    """A fault of Ferry's own; report it. Never retried: the same code would fail again."""


ERROR_CLASSES: tuple[type[FerryError], ...] = (
    BadInputError,
    ConflictError,
    NotFoundError,
    TransientError,
    UnavailableError,
    InternalError,
)


def error_from_info(info: ErrorInfo) -> FerryError:
    """The exception that `info` was made from, for raising on the other side of a process or a wire."""
    for error_class in ERROR_CLASSES:
        if (error_class.status, error_class.retryable) == (info.status, info.retryable):
            break
    else:
        error_class = InternalError
    return error_class(info.code, info.thing, found=info.found, expected=info.expected, next_step=info.next_step)


def error_from_os(error: OSError) -> TransientError:
    """What an operating system error means for a job: a full disk, or IO that may work later."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TransientError(
        "disk_full" if full else "io_error",
        f"file {error.filename}" if error.filename else "a file operation",
        found=error.strerror or type(error).__name__,
        expected="room on the disk" if full else "a working file system and the right to use it",
        next_step="Free space and retry." if full else "Check the path and its permissions, then retry.",
    )
