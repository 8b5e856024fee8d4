"""A lane of its own for `POST /v1/jobs`: the one request that comes in thousands, without a framework's machinery.

It takes what is plain: a JSON body that is a JobRequest. All else goes to the app as it came, which answers it and
describes both. Measured: `python -m tests.benchmarks.load`.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.jobs.errors import FerryError
from worker.jobs.spec import JobRequest

from .body_limit import MAX_BODY_BYTES
from .problems import respond, respond_unforeseen
from .submission import headers, submit
from .surroundings import Surroundings

_JSON = (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
_KEY_AT_MOST = 200
_THREADS = 8
"""A store that is far or away is waited for in threads, so that other requests are answered meanwhile."""
_QUICK_SECONDS = 0.003
"""A thread costs a quarter of a submission's time. While the store answered the last one as quickly as this, none is
used; the first slow answer, the one request that holds up others, ends that."""


class SubmitLane:
    """Stands before the app, which gets whatever it cannot answer."""

    def __init__(self, around: Surroundings) -> None:
        self.around = around
        self.quick = False
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="submit")

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        messages = await _body(receive)
        request = _read(messages)
        if request is None:
            return await app(scope, _again(messages, receive), send)
        return await (await self._answered(request, _key(scope)))(scope, receive, send)

    async def _answered(self, request: JobRequest, key: str | None) -> Response:
        if self.quick:
            return self._timed(request, key)
        return await asyncio.get_running_loop().run_in_executor(self.threads, self._timed, request, key)

    def _timed(self, request: JobRequest, key: str | None) -> Response:
        started = time.monotonic()
        response = self._respond(request, key)
        self.quick = response.status_code < 500 and time.monotonic() - started < _QUICK_SECONDS
        return response

    def _respond(self, request: JobRequest, key: str | None) -> Response:
        try:
            job = submit(self.around, request, key)
        except FerryError as error:
            return respond(error.info)
        except Exception as error:
            return respond_unforeseen("POST", "/v1/jobs", error)
        return Response(job.model_dump_json(), 202, headers(job), "application/json")


def takes(scope: Scope) -> bool:
    """Whether it is a submission with nothing beside its body but, perhaps, a good key."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != "/v1/jobs" or scope["query_string"]:
        return False
    kinds = [value.lower() for name, value in scope["headers"] if name == b"content-type"]
    keys = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    return len(kinds) == 1 and kinds[0] in _JSON and len(keys) < 2 and all(0 < len(key) <= _KEY_AT_MOST for key in keys)


def _key(scope: Scope) -> str | None:
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"idempotency-key"), None)


async def _body(receive: Receive) -> list[Message]:
    """All of it, or its beginning where it is too long: the app sees to that."""
    messages: list[Message] = []
    seen = 0
    while True:
        message = await receive()
        messages.append(message)
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body") or seen > MAX_BODY_BYTES:
            return messages


def _read(messages: list[Message]) -> JobRequest | None:
    """None for what is not plain: too long, not to the end, or no JobRequest."""
    body = b"".join(message.get("body", b"") for message in messages)
    if len(body) > MAX_BODY_BYTES or messages[-1]["type"] != "http.request":
        return None
    try:
        return JobRequest.model_validate_json(body)
    except ValidationError:
        return None


def _again(messages: list[Message], receive: Receive) -> Receive:
    """The messages once more, then whatever comes."""
    left = iter(messages)

    async def replay() -> Message:
        return next(left, None) or await receive()

    return replay
