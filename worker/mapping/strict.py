"""Upstream's config classes, closed: whoever sets a name that they do not declare learns so at once."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

from .rope import UNDECLARED_YARN

_TRANSFORMER = "transformer"


@cache
def strict[T](config_class: type[T]) -> type[T]:
    """`config_class` under its own name and module, so that all that upstream asks of it stays true.

    Upstream's classes take any attribute, so that a misspelled one has no effect and says nothing. A class's own
    `__setattr__` is the only place to notice, hence a subclass: `isinstance` holds, `type(...) is` does not.
    """
    named = {"__module__": config_class.__module__, "__qualname__": config_class.__qualname__, "__slots__": ()}
    return cast("type[T]", type(config_class.__name__, (_Strict, config_class), named))


class _Strict:
    """What is set must be declared; what both the outer and the transformer config declare is set in both."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (_knows(self, name) or name.startswith("_")):
            raise AttributeError(_unknown(self, name))
        super().__setattr__(name, value)
        if name in _declared(self) and name in _declared(vars(self).get(_TRANSFORMER)):
            # Upstream keeps it in the transformer config alone, and reads its own default back.
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as upstream's class and made strict again, since this one has no module that it could be found in."""
        return _revived, (type(self).__mro__[2],), vars(self)


def _revived(config_class: type[Any]) -> object:
    return object.__new__(strict(config_class))


def _knows(config: object, name: str) -> bool:
    if name in _declared(config) or hasattr(type(config), name):
        return True
    transformer: object = vars(config).get(_TRANSFORMER)
    return name in UNDECLARED_YARN if transformer is None else _knows(transformer, name)


def _declared(config: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", getattr(type(config), "__dataclass_fields__", {}))


def _unknown(config: object, name: str) -> str:
    known = [*_declared(config), *_declared(vars(config).get(_TRANSFORMER))]
    alike = get_close_matches(name, known, n=1)
    meant = f"; did you mean {alike[0]!r}?" if alike else ""
    return f"{type(config).__name__} has no field {name!r}{meant}"
