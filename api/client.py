"""The Python client: submit, look, wait; errors are the same classes that the server raised."""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from worker.jobs.errors import ErrorInfo, FerryError, InternalError, TransientError, UnavailableError, error_from_info
from worker.jobs.spec import JobRequest, JobSpec
from worker.jobs.state import TERMINAL, Job

from .job_list import JobList
from .problems_seen import info_of

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 1.0
_LONGEST_WAIT_WHILE_RUNNING_SECONDS = 0.25
_PATIENCE_SECONDS = 60.0
"""How long a server or its store may be away: a restart, not an outage."""
_PAGE, _LARGEST_PAGE = 50, 500

_NOBODY_THERE = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol)


def _log_unreadable(left_out: ErrorInfo) -> None:
    logging.getLogger(__name__).warning("a job is left out: %s", left_out.message)


class Client:
    """Talks to one Ferry server. Every call raises FerryError: the server's, or UnavailableError without one."""

    def __init__(self, base_url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=self.base_url, transport=transport, timeout=30.0)
        self._reached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def submit(
        self,
        spec: JobSpec,
        *,
        labels: dict[str, str] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Job:
        """Hand in a job. Where the answer is lost on the way it is sent again, and still accepted once.

        `options` are the other fields of a JobRequest: priority, gpus, timeout_seconds, depends_on and the like.
        """
        request = JobRequest(spec=spec, labels=labels or {}, **options)
        headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
        return self._patiently(Job, "POST", "/v1/jobs", json=_as_asked(request), headers=headers)

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """What the job would do; nothing is done."""
        return self._call(
            "POST", "/v1/jobs", json=_as_asked(JobRequest(spec=spec)), params={"dry_run": "true"}, timeout=90.0
        )

    def get(self, job_id: str) -> Job:
        """The job as it stands now."""
        return self._ask(Job, "GET", _path(job_id))

    def list(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        label: str | None = None,
        limit: int | None = None,
        on_unreadable: Callable[[ErrorInfo], None] = _log_unreadable,
    ) -> Iterator[Job]:
        """Jobs, newest first, page by page; at most `limit`. A label is `name:value`.

        `on_unreadable` hears of each job that is left out because the server's version cannot read its record; it is
        logged as a warning otherwise.
        """
        asked = {"state": state, "kind": kind, "label": label}
        params = {name: value for name, value in asked.items() if value is not None}
        params["limit"] = str(min(limit or _PAGE, _LARGEST_PAGE))
        return islice(self._pages(params, on_unreadable), limit)

    def cancel(self, job_id: str) -> Job:
        """Ask for an end; a job that has ended stays as it is."""
        return self._ask(Job, "POST", f"{_path(job_id)}/cancel")

    def retry(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again."""
        return self._ask(Job, "POST", f"{_path(job_id)}/retry")

    def wait(self, job_id: str, on_change: Callable[[Job], None] | None = None) -> Job:
        """Until the job has ended, however it did; `on_change` sees it after every look."""
        pause = _FIRST_WAIT_SECONDS
        while True:
            job = self._patiently(Job, "GET", _path(job_id))
            if on_change is not None:
                on_change(job)
            if job.state.state in TERMINAL:
                return job
            time.sleep(pause)
            running = job.state.state == "running"
            pause = min(pause * 1.2, _LONGEST_WAIT_WHILE_RUNNING_SECONDS if running else _LONGEST_WAIT_SECONDS)

    def _pages(self, params: dict[str, str], on_unreadable: Callable[[ErrorInfo], None]) -> Iterator[Job]:
        cursor: dict[str, str] = {}
        while True:
            page = self._ask(JobList, "GET", "/v1/jobs", params=params | cursor)
            for left_out in page.unreadable:
                on_unreadable(left_out)
            yield from page.jobs
            if page.next_cursor is None:
                return
            cursor = {"cursor": page.next_cursor}

    def _patiently[T: BaseModel](self, model: type[T], method: str, path: str, **options: Any) -> T:
        """A question that outlasts a restart of the server or its store; one to a server never seen fails at once."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return self._ask(model, method, path, **options)
            except (TransientError, UnavailableError) as error:
                never_seen = isinstance(error.__cause__, _NOBODY_THERE) and not self._reached
                if never_seen or time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def _ask[T: BaseModel](self, model: type[T], method: str, path: str, **options: Any) -> T:
        answer = self._call(method, path, **options)
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            raise self._not_ours(f"{method} {path}", f"an answer that is no {model.__name__}") from error

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        self._reached = True
        if not response.is_success:
            raise self._error(response)
        try:
            return response.json()
        except ValueError as error:
            raise self._not_ours(f"{method} {path}", f"status {response.status_code} without JSON") from error

    def _error(self, response: httpx.Response) -> FerryError:
        try:
            return error_from_info(info_of(response.json()))
        except (ValueError, AttributeError):
            found = f"status {response.status_code} without a problem document"
            return self._not_ours(f"{response.request.method} {response.request.url.path}", found)

    def _not_ours(self, question: str, found: str) -> InternalError:
        return InternalError(
            "internal",
            f"{question} at {self.base_url}",
            found=found,
            expected="an answer of a Ferry server of this version",
            next_step="Check which server runs there; --server or FERRY_URL names another.",
        )

    def _unreachable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            "store_unavailable",
            f"the Ferry server at {self.base_url}",
            found=str(error) or type(error).__name__,
            expected="an answer",
            next_step="Start one with `ferry up`, name another with --server or FERRY_URL, or use --local.",
        )


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _as_asked(request: JobRequest) -> dict[str, Any]:
    """The request without what is left at its default, so that a server that lacks the newest options takes it too."""
    told_apart_by = request.spec.model_dump(mode="json", include={"kind", "action"})
    asked = request.model_dump(mode="json", exclude_defaults=True)
    return asked | {"spec": told_apart_by | asked["spec"]}
