"""Which part is done next, and what becomes of done ones: a list here, or a board that many workers share."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from .copy import Segment

Segments = tuple[Segment, ...]


class PartQueue(Protocol):
    """Asked by the one process that hands parts to others."""

    def take(self) -> int | None:
        """The number of a part to do; None: none is to be had now."""
        ...

    def done(self, number: int, segments: Segments) -> None:
        """A taken part is written."""
        ...

    def over(self) -> bool:
        """Whether no part is left to do, none that others hold included."""
        ...

    def tend(self) -> None:
        """Called several times a second."""
        ...


def _unheard(number: int, segments: Segments) -> None:
    pass


@dataclass(slots=True)
class ListedParts:
    """Parts that nobody else does. `heard` learns of each done one."""

    numbers: Iterable[int]
    heard: Callable[[int, Segments], None] = _unheard
    finished: dict[int, Segments] = field(default_factory=dict[int, Segments])
    _left: deque[int] = field(init=False)

    def __post_init__(self) -> None:
        self._left = deque(self.numbers)

    def take(self) -> int | None:
        return self._left.popleft() if self._left else None

    def done(self, number: int, segments: Segments) -> None:
        self.finished[number] = segments
        self.heard(number, segments)

    def over(self) -> bool:
        return not self._left

    def tend(self) -> None:
        pass
