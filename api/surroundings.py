"""What every route is given: the store, the roots, and the checks that need both."""

import asyncio
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from worker.jobs.errors import BadInputError
from worker.jobs.locations import Roots, refuse_inside, refuse_taken
from worker.jobs.spec import JobSpec, replaces, target_of
from worker.jobs.spec_sources import sources_of
from worker.jobs.store import JobStore
from worker.jobs.unused_options import refuse_unused

_PLANS_AT_ONCE = 2
"""A plan is a process of its own for a second or so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """One for each app; no route reaches for anything else."""

    store: JobStore
    roots: Roots
    planning: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PLANS_AT_ONCE))

    def check(self, spec: JobSpec, *, sources_exist: bool = True) -> Path | None:
        """The resolved target, if the job has one. FerryError where the job could not start as things stand.

        Without `sources_exist`, other jobs may still have to make them.
        """
        refuse_unused(spec)
        for name, location in sources_of(spec):
            self._check_source(name, location, exists=sources_exist)
        location = target_of(spec)
        if location is None:
            return None
        target = self.roots.resolve_target(location)
        if _status(location, target):
            refuse_taken(target, replaces=replaces(spec))
        for name, source in sources_of(spec):
            refuse_inside(self.roots.resolve(source), target, name)
        return target

    def _check_source(self, name: str, location: str, *, exists: bool) -> None:
        path = self.roots.resolve(location)
        status = _status(location, path)
        if status is None:
            if exists:
                raise _missing(name, location, f"nothing at {path}")
        elif not stat.S_ISDIR(status.st_mode):
            raise _missing(name, location, f"no folder at {path}")


def surroundings(request: Request) -> Surroundings:
    """The app's own."""
    return request.app.state.surroundings


Around = Annotated[Surroundings, Depends(surroundings)]


def _status(location: str, path: Path) -> os.stat_result | None:
    """What stands at a path, None without anything. BadInputError for a path that nothing could stand at."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInputError(
            "bad_location",
            f"location {location!r}",
            found=error.strerror or type(error).__name__,
            expected="a path that the server may use",
            next_step="Check the path as the server sees it.",
        ) from error


def _missing(name: str, location: str, found: str) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"{name} {location}",
        found=found,
        expected="a folder that the server can read",
        next_step="Check the path as the server sees it.",
    )
