"""The one match over job kinds: run a job, or only plan it."""

from contextlib import closing
from typing import assert_never

from ..engine.processes import CopyOptions
from ..jobs.errors import BadInputError
from ..jobs.locations import Locations
from ..jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    ConfigSpec,
    ConversionSpec,
    ExportSpec,
    ImportSpec,
    JobSpec,
    MergeSpec,
    SetupSpec,
    VerifySpec,
)
from ..jobs.unused_options import refuse_unused
from . import adapter, config, export_checkpoint, import_checkpoint, merge, setup, verify
from .context import Answer, JobContext, Prepared
from .conversion import Conversion, describe


def run(spec: JobSpec, context: JobContext) -> Answer | Prepared:
    """Do what the spec asks. Raises FerryError; publishes nothing."""
    refuse_unused(spec)
    with closing(context.model_configs):
        return _run(spec, context)


def _run(spec: JobSpec, context: JobContext) -> Answer | Prepared:
    match spec:
        case ConfigSpec():
            return config.run(spec, context)
        case ImportSpec():
            return import_checkpoint.run(spec, context)
        case ExportSpec():
            return export_checkpoint.run(spec, context)
        case MergeSpec():
            return merge.run(spec, context)
        case AdapterExportSpec() | AdapterImportSpec() | AdapterExtractSpec():
            return adapter.run(spec, context)
        case SetupSpec():
            return setup.run(spec, context)
        case VerifySpec():
            return verify.run(spec, context)
        case _:
            assert_never(spec)


def conversion_of(spec: ConversionSpec, locations: Locations) -> Conversion:
    """The job's plan: nothing is written."""
    match spec:
        case ImportSpec():
            return import_checkpoint.prepare(spec, locations)
        case ExportSpec():
            return export_checkpoint.prepare(spec, locations)
        case MergeSpec():
            return merge.prepare(spec, locations)
        case AdapterExportSpec() | AdapterImportSpec() | AdapterExtractSpec():
            return adapter.prepare(spec, locations)
        case SetupSpec():
            return setup.prepare(spec, locations)
        case _:
            assert_never(spec)


def plan(spec: JobSpec, locations: Locations, options: CopyOptions) -> dict[str, object]:
    """What the job would do, as JSON; writes nothing."""
    match spec:
        case ConfigSpec() | VerifySpec():
            raise BadInputError(
                "bad_request",
                f"a plan for a {spec.kind} job",
                found="a job that writes nothing",
                expected="import, export, merge, adapter or setup",
                next_step="Run it; it leaves nothing behind.",
            )
        case _:
            refuse_unused(spec)
            return {**describe(conversion_of(spec, locations), options), "verify": list(spec.verify)}
