"""What a job reads, and that its target is none of it."""

from typing import assert_never

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
    """FerryError where a place is not allowed, the target is taken, or it lies in what the job reads or around it."""
    sources = [(field, locations.resolve_source(location)) for field, location in sources_of(spec)]
    location = target_of(spec)
    if location is None:
        return
    target = locations.resolve_target(location)
    refuse_taken(target, replaces=replaces(spec))
    for field, source in sources:
        refuse_inside(source, target, field)
