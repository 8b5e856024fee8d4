"""The web application, and what its OpenAPI page says of errors."""

from typing import Any

from fastapi import FastAPI

from .problems import MEDIA_TYPE, Problem

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
_UNUSED = ("HTTPValidationError", "ValidationError")
"""FastAPI's own forms of a validation error, which no endpoint answers."""


class FerryApp(FastAPI):
    """FastAPI whose description shows every error as the problem document that it is."""

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
