"""A config as it was read: named values, and typed access that says what is wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from ..jobs.errors import BadInputError, ErrorCode


@dataclass(frozen=True, slots=True)
class Record:
    """Named JSON values of one config; `origin` says whose, for errors."""

    values: Mapping[str, object]
    origin: str

    def get(self, name: str) -> object:
        """The value, or None where it is absent or null."""
        return self.values.get(name)

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; `default` stands in where it is absent or null."""
        value = self._value(name, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self.wrong(name, "an integer")

    def positive(self, name: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.integer(name, default)
        if value > 0:
            return value
        raise self.wrong(name, "an integer above zero")

    def number(self, name: str, default: float | None = None) -> float:
        """A number, kept as it was written (an int stays one)."""
        value = self._value(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return value
            raise self.wrong(name, "a finite number")
        raise self.wrong(name, "a number")

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(name, default)
        if isinstance(value, bool):
            return value
        raise self.wrong(name, "true or false")

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if isinstance(value, str):
            return value
        raise self.wrong(name, "a string")

    def section(self, name: str) -> "Record | None":
        """A nested object, or None where it is absent or null."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, dict):
            return Record(cast(dict[str, object], value), f"{self.origin}: {name}")
        raise self.wrong(name, "an object or null")

    def wrong(self, name: str, expected: str, code: ErrorCode = "bad_config") -> BadInputError:
        """The error for a value that is not what it should be."""
        found = repr(self.values[name]) if name in self.values else "nothing"
        return BadInputError(
            code, f"{self.origin}: field {name!r}", found=found, expected=expected, next_step="Mend the config."
        )

    def unsupported(self, name: str, expected: str, why: str) -> BadInputError:
        """The error for a value that Ferry or Megatron-Core cannot express."""
        return BadInputError(
            "unsupported_config_value",
            f"{self.origin}: field {name!r}",
            found=repr(self.values.get(name)),
            expected=expected,
            next_step=why,
        )

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        return default if value is None else value
