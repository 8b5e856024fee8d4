"""What several commands say of their output, from an option's text to a spec's value."""

from collections.abc import Sequence
from typing import Literal, cast

from worker.jobs.spec import Check, OnExists

from .locations import as_sent
from .running import size_of


def sent(typed: str | None) -> str | None:
    """A location, if there is one."""
    return as_sent(typed) if typed else None


def size(text: str | None) -> int | None:
    """Bytes, if they were said."""
    return size_of(text) if text else None


def checks(names: Sequence[str] | None) -> tuple[Check, ...]:
    """Of `--verify`; the spec refuses a name that is none."""
    return cast("tuple[Check, ...]", tuple(names or ()))


def tensor_check(names: Sequence[str] | None) -> tuple[Literal["tensors"], ...]:
    """The same, where one check is known."""
    return cast("tuple[Literal['tensors'], ...]", tuple(names or ()))


def on_exists(replace: bool) -> OnExists:
    """Of `--replace`."""
    return "replace" if replace else "error"
