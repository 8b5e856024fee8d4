"""What a job reads, and that its target is none of it."""

import os
from pathlib import Path
from typing import assert_never

from .errors import BadInputError
from .locations import Locations, refuse_inside, refuse_taken
from .setup_spec import SetupSpec
from .spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    ConfigSpec,
    ExportSpec,
    ImportSpec,
    JobSpec,
    MergeSpec,
    VerifySpec,
    replaces,
    target_of,
)


def sources_of(spec: JobSpec) -> tuple[tuple[str, str], ...]:
    """The locations that the spec names as read, each with what the spec calls it."""
    match spec:
        case ConfigSpec() | ImportSpec():
            given = (("source", spec.source),)
        case ExportSpec() | SetupSpec():
            given = (("source", spec.source), ("hf_config", spec.hf_config))
        case MergeSpec():
            adapters = (("adapter", adapter.path) for adapter in spec.adapters)
            given = (("source", spec.source), ("hf_config", spec.hf_config), *adapters)
        case AdapterExportSpec() | AdapterImportSpec():
            given = (("source", spec.source), ("base", spec.base))
        case AdapterExtractSpec():
            given = (("source", spec.source), ("tuned", spec.tuned), ("hf_config", spec.hf_config))
        case VerifySpec():
            given = (("source", spec.source), ("against", spec.against), ("hf_config", spec.hf_config))
        case _:
            assert_never(spec)
    return tuple((field, location) for field, location in given if location)


def refuse_target(spec: JobSpec, locations: Locations) -> None:
    """FerryError where a place is not allowed, a source not there, or the target taken, in a source or around it."""
    sources = [(field, locations.resolve_source(location)) for field, location in sources_of(spec)]
    location = target_of(spec)
    target = None if location is None else locations.resolve_target(location)
    if target is not None:
        refuse_taken(target, replaces=replaces(spec))
    for field, source in sources:
        if not os.path.exists(source):  # no look of the plan's: it has its own
            raise _missing(field, source)
        if target is not None:
            refuse_inside(source, target, field)


def _missing(field: str, source: Path) -> BadInputError:
    return BadInputError(
        "missing_file",
        f"{field} {source}",
        found="no such folder",
        expected="one that is there and may be read",
        next_step="Check the path.",
    )
