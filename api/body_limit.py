"""A cap on request bodies, kept while they stream in: a declared length is only a promise."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.jobs.errors import ErrorInfo

from .problems import respond

MAX_BODY_BYTES = 2**20


class _TooLongError(Exception):
    pass


class BodyLimit:
    """ASGI middleware that answers 413 once more than `MAX_BODY_BYTES` came in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise _TooLongError
            return message

        try:
            await self.app(scope, counted, send)
        except _TooLongError:
            await respond(_too_long())(scope, receive, send)


def _too_long() -> ErrorInfo:
    return ErrorInfo(
        code="bad_request",
        thing="request body",
        found=f"more than {MAX_BODY_BYTES:,} bytes",
        expected=f"at most {MAX_BODY_BYTES:,} bytes",
        next_step="Send a job spec; weights stay on shared storage.",
        status=413,
        retryable=False,
    )
