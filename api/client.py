"""The Python client: submit, look, wait; errors are the same classes that the server raised."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import httpx
from pydantic import ValidationError

from worker.jobs.errors import FerryError, InternalError, UnavailableError, error_from_info
from worker.jobs.spec import JobRequest, JobSpec
from worker.jobs.state import TERMINAL, Job

from .problems_seen import info_of

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 1.0
_PATIENCE_SECONDS = 60.0
"""How long `wait` outlasts a server that does not answer: a restart, not an outage."""


class Client:
    """Talks to one Ferry server. Every call raises FerryError: the server's, or UnavailableError without one."""

    def __init__(self, base_url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=self.base_url, transport=transport, timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def submit(self, spec: JobSpec, *, labels: dict[str, str] | None = None, idempotency_key: str | None = None) -> Job:
        """Hand in a job. Sent again after a lost answer, it is still accepted once."""
        request = JobRequest(spec=spec, labels=labels or {})
        headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
        body = request.model_dump(mode="json")
        return Job.model_validate(self._patiently("POST", "/v1/jobs", json=body, headers=headers))

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """What the job would do; nothing is done."""
        body = JobRequest(spec=spec).model_dump(mode="json")
        return self._call("POST", "/v1/jobs", json=body, params={"dry_run": "true"}, timeout=90.0)

    def get(self, job_id: str) -> Job:
        """The job as it stands now."""
        return Job.model_validate(self._call("GET", f"/v1/jobs/{job_id}"))

    def list(
        self, *, state: str | None = None, kind: str | None = None, label: str | None = None, limit: int | None = None
    ) -> Iterator[Job]:
        """Jobs, newest first, page by page; at most `limit`."""
        asked = {"state": state, "kind": kind, "label": label, "limit": str(min(limit or 50, 500))}
        params = {name: value for name, value in asked.items() if value is not None}
        given = 0
        while True:
            page = self._call("GET", "/v1/jobs", params=params)
            for job in page["jobs"]:
                if given == limit:
                    return
                given += 1
                yield Job.model_validate(job)
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]

    def cancel(self, job_id: str) -> Job:
        """Ask for an end; a job that has ended stays as it is."""
        return Job.model_validate(self._call("POST", f"/v1/jobs/{job_id}/cancel"))

    def wait(self, job_id: str, on_change: Callable[[Job], None] | None = None) -> Job:
        """Until the job has ended, however it did; `on_change` sees it after every look."""
        pause = _FIRST_WAIT_SECONDS
        while True:
            job = Job.model_validate(self._patiently("GET", f"/v1/jobs/{job_id}"))
            if on_change is not None:
                on_change(job)
            if job.state.state in TERMINAL:
                return job
            time.sleep(pause)
            pause = min(pause * 1.2, _LONGEST_WAIT_SECONDS if job.state.state == "queued" else 0.25)

    def _patiently(self, method: str, path: str, **options: Any) -> Any:
        """A call that outlasts a server's or a store's restart."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        reached = False
        while True:
            try:
                return self._call(method, path, **options)
            except UnavailableError:
                # A server that never answered is a wrong URL, mostly: say so soon.
                reached = reached or method == "GET"
                if not reached or time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_success:
            return response.json()
        raise self._error(response)

    def _error(self, response: httpx.Response) -> FerryError:
        try:
            return error_from_info(info_of(response.json()))
        except (ValueError, ValidationError, AttributeError):
            return InternalError(
                "internal",
                f"{response.request.method} {response.request.url}",
                found=f"status {response.status_code} without a problem document",
                expected="an answer of a Ferry server",
                next_step=f"Check that a Ferry server runs at {self.base_url}.",
            )

    def _unreachable(self, error: httpx.HTTPError) -> UnavailableError:
        return UnavailableError(
            "store_unavailable",
            f"the Ferry server at {self.base_url}",
            found=str(error) or type(error).__name__,
            expected="an answer",
            next_step="Start one with `ferry up`, name another with --server or FERRY_URL, or use --local.",
        )
