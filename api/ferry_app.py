"""The web application, and what its OpenAPI page says of errors."""

from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from .problems import MEDIA_TYPE, Problem
from .submit_lane import SubmitLane, takes

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
_UNUSED = ("HTTPValidationError", "ValidationError")
"""FastAPI's own forms of a validation error, which no endpoint answers."""


class FerryApp(FastAPI):
    """FastAPI whose description shows every error as the problem document that it is, with a lane beside it."""

    lane: SubmitLane | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.lane is not None and takes(scope):
            await self.lane(super().__call__, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        described = self.openapi_schema is not None
        schema = super().openapi()
        if not described:
            _show_problems(schema)
        return schema


def _show_problems(schema: dict[str, Any]) -> None:
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = _PROBLEM
    for name in _UNUSED:
        schema["components"]["schemas"].pop(name, None)
