"""What every route is given: the store, the roots, and the checks that need both."""

import asyncio
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, assert_never

from fastapi import Depends, Request

from worker.jobs.errors import BadInputError
from worker.jobs.locations import Roots, target_exists
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    ConfigSpec,
    ExportSpec,
    ImportSpec,
    JobSpec,
    MergeSpec,
    SetupSpec,
    VerifySpec,
    replaces,
    target_of,
)
from worker.jobs.store import JobStore

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
        for source in _sources_of(spec):
            self._check_source(source, exists=sources_exist)
        location = target_of(spec)
        if location is None:
            return None
        target = self.roots.resolve_target(location)
        if _status(location, target) and not replaces(spec):
            raise target_exists(target)
        return target

    def _check_source(self, location: str, *, exists: bool) -> None:
        path = self.roots.resolve(location)
        status = _status(location, path)
        if status is None:
            if exists:
                raise _missing(location, f"nothing at {path}")
        elif not stat.S_ISDIR(status.st_mode):
            raise _missing(location, f"no folder at {path}")


def surroundings(request: Request) -> Surroundings:
    """The app's own."""
    return request.app.state.surroundings


Around = Annotated[Surroundings, Depends(surroundings)]


def _sources_of(spec: JobSpec) -> tuple[str, ...]:
    match spec:
        case ConfigSpec() | ImportSpec():
            return (spec.source,)
        case ExportSpec() | SetupSpec():
            return (spec.source, spec.hf_config) if spec.hf_config else (spec.source,)
        case MergeSpec():
            given = (spec.source, spec.hf_config, *(adapter.path for adapter in spec.adapters))
            return tuple(location for location in given if location is not None)
        case AdapterExportSpec() | AdapterImportSpec():
            return (spec.source, spec.base) if spec.base else (spec.source,)
        case AdapterExtractSpec():
            return (spec.source, spec.tuned, *((spec.hf_config,) if spec.hf_config else ()))
        case VerifySpec():
            given = (spec.source, spec.against, spec.hf_config)
            return tuple(location for location in given if location is not None)
        case _:
            assert_never(spec)


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


def _missing(location: str, found: str) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"source {location}",
        found=found,
        expected="a folder that the server can read",
        next_step="Check the path as the server sees it.",
    )
