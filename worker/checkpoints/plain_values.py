"""Pickled attributes as plain values: what may leave the inert reading."""

from typing import cast

from .torch_pickle import Inert


def plain_attributes(value: object) -> dict[str, object]:
    """The attributes of an inert object (a Namespace), or the items of a dict; none of anything else."""
    state = value.state if isinstance(value, Inert) else value
    if not isinstance(state, dict):
        return {}
    return {str(name): _plain(item) for name, item in cast("dict[object, object]", state).items()}


def _plain(value: object) -> object:
    """Numbers, text and containers of them; anything else by its class's name, which nothing takes for a value."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in cast("list[object]", value)]
        case dict():
            items = cast("dict[object, object]", value).items()
            return {str(name): _plain(item) for name, item in items}
        case Inert():
            return f"<{value.name}>"
        case _:
            return f"<{type(value).__name__}>"
