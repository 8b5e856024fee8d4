"""Every error as an RFC 9457 problem document with a stable code, what was found, expected, and the next step."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from worker.jobs.errors import ErrorInfo, FerryError
from worker.jobs.misreading import Misreading
from worker.jobs.spec import JobRequest

from .body_limit import MAX_BODY_BYTES, BodyTooLongError

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger("ferry.api")


class Problem(BaseModel):
    """An error, as every endpoint answers it (RFC 9457)."""

    type: str
    """`urn:ferry:problem:<code>`"""
    title: str
    status: int
    detail: str
    code: str
    thing: str
    found: str
    expected: str
    next_step: str
    retryable: bool


def problem_of(info: ErrorInfo) -> Problem:
    """The document for an error."""
    return Problem(
        type=f"urn:ferry:problem:{info.code}",
        title=info.code.replace("_", " "),
        detail=info.message,
        **info.model_dump(),
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route declares of the problem documents that it may answer."""
    return {status: {"model": Problem} for status in statuses}


def add_problem_handlers(app: FastAPI) -> None:
    """No error leaves the API in another form."""
    app.add_exception_handler(FerryError, _ferry_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(BodyTooLongError, _body_too_long)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)


def respond(info: ErrorInfo, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response for an error; one that may pass says when to try again."""
    retry = {"Retry-After": "2"} if info.retryable else {}
    return JSONResponse(
        problem_of(info).model_dump(),
        status_code=info.status,
        media_type=MEDIA_TYPE,
        headers={**retry, **(headers or {})},
    )


async def _ferry_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FerryError)  # registered for it
    return respond(error.info)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # registered for it
    if isinstance(error.body, bytes):
        return _not_json(request)
    first = cast("ErrorDetails", error.errors()[0])
    where, *loc = first["loc"]
    read = Misreading.of(first, loc, JobRequest if where == "body" else None)
    place = "field" if where == "body" else f"{where} parameter"
    return respond(
        ErrorInfo(
            code="bad_request",
            thing=f"request {place} {read.field}" if read.field else f"request {where}",
            found=read.found,
            expected=read.expected,
            next_step=f"{read.hint}Correct the request; /docs shows its form.",
            status=422,
            retryable=False,
        )
    )


def _not_json(request: Request) -> JSONResponse:
    """FastAPI takes a body for JSON only where its type says so; a page in a browser cannot send that unasked."""
    return respond(
        ErrorInfo(
            code="bad_request",
            thing="request header Content-Type",
            found=request.headers.get("Content-Type", "none"),
            expected="application/json",
            next_step="Send the header with the body.",
            status=415,
            retryable=False,
        )
    )


async def _body_too_long(request: Request, error: Exception) -> JSONResponse:
    return respond(
        ErrorInfo(
            code="bad_request",
            thing="request body",
            found=f"more than {MAX_BODY_BYTES:,} bytes",
            expected=f"at most {MAX_BODY_BYTES:,} bytes",
            next_step="Send a job spec; weights stay on shared storage.",
            status=413,
            retryable=False,
        )
    )


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # registered for it
    return respond(
        ErrorInfo(
            code="bad_request",
            thing=f"{request.method} {request.url.path}",
            found=str(error.detail),
            expected="a path and method of this API" if error.status_code in (404, 405) else "a readable request",
            next_step="Look at /docs.",
            status=error.status_code,
            retryable=False,
        ),
        error.headers,
    )


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    return respond_unforeseen(request.method, request.url.path, error)


def respond_unforeseen(method: str, path: str, error: Exception) -> JSONResponse:
    """The response for an error that nobody foresaw; its traceback goes to the log alone."""
    _log.exception("unforeseen_error", exc_info=error)
    return respond(
        ErrorInfo(
            code="internal",
            thing=f"{method} {path}",
            found=type(error).__name__,
            expected="no unforeseen error",
            next_step="Report this with the traceback from the API's log.",
            status=500,
            retryable=False,
        )
    )
