"""What an operator asks of a job's reading and writing beyond the job itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..engine.throttle import IoLimit
from .ownership import Ownership


class Rules(Protocol):
    """Looked up by place: absolute paths without links."""

    def io_limits(self, source: Path, target: Path) -> tuple[IoLimit, ...]:
        """The limits that a copy from one to the other keeps, all of them."""
        ...

    def ownership(self, target: Path) -> Ownership:
        """Whose the output becomes."""
        ...


@dataclass(frozen=True, slots=True)
class GivenRules:
    """The same limits everywhere, and output of whoever writes it: a run without a service."""

    limits: tuple[IoLimit, ...] = ()

    def io_limits(self, source: Path, target: Path) -> tuple[IoLimit, ...]:
        return self.limits

    def ownership(self, target: Path) -> Ownership:
        return Ownership()
