"""What pydantic could not read, in Ferry's words: the field, what was found, what was expected, the next step."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_EXPECTED: Mapping[str, str] = {
    "missing": "a value: this field has no default",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt:,}",
    "greater_than_equal": "a number of at least {ge:,}",
    "less_than": "a number below {lt:,}",
    "less_than_equal": "a number of at most {le:,}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_unicode": "text in UTF-8",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text without control characters",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "fields with values, as a JSON object has them",
    "model_type": "fields with values, as a JSON object has them",
    "model_attributes_type": "fields with values, as a JSON object has them",
    "invalid_key": "the name of a field",
    "json_invalid": "a request in JSON",
}
"""By pydantic's type of error, with what it tells of it."""

UNFORESEEN = "a value that this field can have; /docs shows it"

_DISCRIMINATORS = ("kind", "action")
"""Of the unions in worker/jobs/spec.py, the outer one first."""

_MOST = 200
"""Characters of what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Misreading:
    """One value that a model cannot have."""

    field: str
    """`parallelism.tp_size`; empty for the whole."""
    found: str
    expected: str
    hint: str
    """A field that may have been meant, as the beginning of a next step; or nothing."""

    @classmethod
    def first_of(cls, error: ValidationError, model: type[BaseModel] | None) -> Self:
        """The first of what a `model` could not have."""
        first = error.errors()[0]
        return cls.of(first, first["loc"], model)

    @classmethod
    def of(cls, error: ErrorDetails, loc: Iterable[int | str], model: type[BaseModel] | None) -> Self:
        """An error of `model`, at `loc` in it."""
        path, models = _walked(loc, () if model is None else (model,))
        context: Mapping[str, Any] = error.get("ctx", {})
        match error["type"]:
            case "extra_forbidden":
                return cls._unknown(path, models)
            case "union_tag_not_found" | "union_tag_invalid":
                name = str(context["discriminator"]).strip("'")
                found = repr(context["tag"]) if "tag" in context else "nothing"
                return cls(field=".".join((*path, name)), found=found, expected=_tags(models, name), hint="")
            case "missing":
                found = "nothing"
            case "json_invalid":
                found = f"no valid JSON: {context.get('error')} at character {path[-1] if path else 0}"
                path = ()
            case _:
                found = _shown(error.get("input"))
        return cls(field=".".join(path), found=found, expected=_expected(error["type"], context), hint="")

    @classmethod
    def _unknown(cls, path: tuple[str, ...], models: tuple[type[BaseModel], ...]) -> Self:
        known = sorted({name for model in models for name in model.model_fields})
        close = get_close_matches(path[-1], known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        expected = f"one of {', '.join(known)}" if known else "a field that is known"
        return cls(field=".".join(path), found="a field of no such name", expected=expected, hint=hint)


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return str(context["error"])
    return _EXPECTED.get(kind, UNFORESEEN).format(**context)


def _shown(value: object) -> str:
    plain = value is None or isinstance(value, bool)
    return (json.dumps(value) if plain else repr(value))[:_MOST]


def _walked(
    loc: Iterable[int | str], models: tuple[type[BaseModel], ...]
) -> tuple[tuple[str, ...], tuple[type[BaseModel], ...]]:
    """The names along `loc`, without the tags by which pydantic tells the members of a union apart; models there."""
    path: list[str] = []
    for step in loc:
        fields = [model.model_fields[step].annotation for model in models if step in model.model_fields]
        tagged = _tagged(models, step)
        if fields:
            models = tuple(found for annotation in fields for found in _models(annotation))
        elif tagged and len(models) > 1:
            models = tagged
            continue
        if not _names_a_type(step):
            path.append(str(step))
    return tuple(path), models


def _names_a_type(step: int | str) -> bool:
    """By `frozenset[str]` pydantic tells members of a union apart that are no models."""
    return isinstance(step, str) and "[" in step


def _tagged(models: tuple[type[BaseModel], ...], step: int | str) -> tuple[type[BaseModel], ...]:
    """The members of a union that a tag means."""
    by_name = (tuple(model for model in models if _literals(model, name) == (step,)) for name in _DISCRIMINATORS)
    return next(filter(None, by_name), ())


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """Every model that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
    else:
        for part in get_args(annotation):
            yield from _models(part)


def _literals(model: type[BaseModel], name: str) -> tuple[object, ...]:
    field = model.model_fields.get(name)
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _tags(models: tuple[type[BaseModel], ...], name: str) -> str:
    tags = dict.fromkeys(str(tag) for model in models for tag in _literals(model, name))
    return f"one of {', '.join(tags)}"
