"""What every route is given: the store, the roots, and the checks that need both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from worker.jobs.errors import BadInputError
from worker.jobs.locations import Roots, refuse_existing
from worker.jobs.spec import JobSpec, target_of
from worker.jobs.store import JobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """One for each app; no route reaches for anything else."""

    store: JobStore
    roots: Roots

    def check(self, spec: JobSpec) -> Path | None:
        """The resolved target, if the job has one. FerryError where the job could not start as things stand."""
        source = self.roots.resolve(spec.source)
        if not source.exists():
            raise _missing(spec.source, source)
        location = target_of(spec)
        if location is None:
            return None
        target = self.roots.resolve(location)
        refuse_existing(target)
        return target


def surroundings(request: Request) -> Surroundings:
    """The app's own."""
    return request.app.state.surroundings


Around = Annotated[Surroundings, Depends(surroundings)]


def _missing(location: str, path: Path) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"source {location}",
        found=f"nothing at {path}",
        expected="a folder that the server can read",
        next_step="Check the path as the server sees it.",
    )
