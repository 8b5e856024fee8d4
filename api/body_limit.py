"""A cap on request bodies, kept while they stream in: a declared length is only a promise."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**20


class BodyTooLongError(HTTPException):
    """More than `MAX_BODY_BYTES` came in. An HTTPException, since FastAPI makes a plain 400 of any other here."""

    def __init__(self) -> None:
        super().__init__(413)


class BodyLimit:
    """ASGI middleware that stops a body at `MAX_BODY_BYTES`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY_BYTES:
                raise BodyTooLongError
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)
