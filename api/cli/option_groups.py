"""Options that belong together: one parameter of a command stands for all fields of a frozen dataclass."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: a parameter for each field of its groups, in their order."""
    asked = inspect.signature(command, eval_str=True).parameters.values()

    @wraps(command)
    def flat(**given: Any) -> None:
        command(**{one.name: _filled(one.name, one.annotation, given) for one in asked})

    flattened = [parameter for one in asked for parameter in _flattened(one)]
    flat.__signature__ = inspect.Signature(flattened)  # pyright: ignore[reportAttributeAccessIssue]  # what inspect looks for first
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in flattened}
    return flat


def _flattened(asked: inspect.Parameter) -> Iterator[inspect.Parameter]:
    if not is_dataclass(asked.annotation):
        yield asked.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = get_type_hints(asked.annotation, include_extras=True)
    for field in fields(asked.annotation):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        own = inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )
        yield from _flattened(own)


def _filled(name: str, annotation: Any, given: Mapping[str, Any]) -> Any:
    if not is_dataclass(annotation) or not isinstance(annotation, type):
        return given[name]
    hints = get_type_hints(annotation, include_extras=True)
    return annotation(**{field.name: _filled(field.name, hints[field.name], given) for field in fields(annotation)})
