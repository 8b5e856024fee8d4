"""JSON of others: what is no JSON, in whatever way, is one kind of error."""

import json
from typing import Any, NoReturn


def loads(text: bytes | str) -> Any:
    """ValueError where it cannot be read: nested too deep, or with NaN for a number."""
    try:
        return json.loads(text, parse_constant=_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def loads_unique(text: bytes | str) -> Any:
    """The same; ValueError too where an object has a name twice, of which readers take the one or the other."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def integer(value: object) -> int:
    """ValueError where it is a text, a fraction or a truth."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} for an integer")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name!r} twice")
            seen.add(name)
    return made


def _constant(name: str) -> float:
    if name == "NaN":
        _no_constant(name)
    return float(name)  # Mamba's configs say Infinity.


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} for a number")
