"""What a job reads, and that its target is none of it."""

from pathlib import Path
from typing import assert_never

from .locations import Locations, refuse_inside
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
)


def sources_of(spec: JobSpec) -> tuple[str, ...]:
    """The locations that the spec names as read."""
    match spec:
        case ConfigSpec() | ImportSpec():
            given = (spec.source,)
        case ExportSpec() | SetupSpec():
            given = (spec.source, spec.hf_config)
        case MergeSpec():
            given = (spec.source, spec.hf_config, *(adapter.path for adapter in spec.adapters))
        case AdapterExportSpec() | AdapterImportSpec():
            given = (spec.source, spec.base)
        case AdapterExtractSpec():
            given = (spec.source, spec.tuned, spec.hf_config)
        case VerifySpec():
            given = (spec.source, spec.against, spec.hf_config)
        case _:
            assert_never(spec)
    return tuple(location for location in given if location)


def refuse_own_sources(spec: JobSpec, target: Path, locations: Locations) -> None:
    """BadInputError where the target would lie in what the job reads, or take its place."""
    for location in sources_of(spec):
        refuse_inside(locations.resolve_source(location), target)
