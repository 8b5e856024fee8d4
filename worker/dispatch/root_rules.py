"""A worker's rules: those of the roots that a job reads from and writes to."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..engine.throttle import IoLimit
from ..handlers.ownership import Ownership, ownership_of
from ..jobs.roots import named_root_of
from ..settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class RootRules:
    """Limits are shared by all workers of a host that have one data folder."""

    settings: WorkerSettings

    def io_limits(self, source: Path, target: Path) -> tuple[IoLimit, ...]:
        """One for each root, also where the copy stays within it."""
        found = dict(found for path in (source, target) if (found := named_root_of(path, self.settings.roots)))
        rates = {name: root.io or self.settings.io_bytes_per_second for name, root in found.items()}
        return tuple(IoLimit(self._clock(name), rate) for name, rate in rates.items() if rate is not None)

    def ownership(self, target: Path) -> Ownership:
        found = named_root_of(target, self.settings.roots)
        return ownership_of(*found) if found else Ownership()

    def _clock(self, name: str) -> Path:
        """Hosts that share the folder have clocks of their own."""
        folder = self.settings.data / "io"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}@{os.uname().nodename}"


def refuse_impossible(settings: WorkerSettings) -> None:
    """BadInputError where this worker cannot do what its roots ask for: before it takes a job."""
    for name, root in settings.roots.items():
        ownership_of(name, root)
