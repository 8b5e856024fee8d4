"""The `adapter` job: PEFT <-> Megatron, and adapters out of two checkpoints."""

import time
from typing import assert_never

from ..engine.collection import uncollected
from ..jobs.locations import Locations
from ..jobs.spec import AdapterExportSpec, AdapterExtractSpec, AdapterImportSpec, AdapterSpec
from . import adapter_export, adapter_extract, adapter_import
from .context import JobContext, Prepared
from .conversion import Conversion, carry_out, watched


def run(spec: AdapterSpec, context: JobContext) -> Prepared:
    """Plan, extract where that is asked, copy, finalize."""
    started = time.monotonic()
    conversion = prepare(spec, context.locations)
    if isinstance(spec, AdapterExtractSpec):
        conversion = adapter_extract.extracted(conversion, spec, context)
    return carry_out(conversion, spec, context, started, dict[str, bytes])


@uncollected()
@watched
def prepare(spec: AdapterSpec, locations: Locations) -> Conversion:
    """Everything that can be known before the first byte."""
    match spec:
        case AdapterExportSpec():
            return adapter_export.prepare(spec, locations)
        case AdapterImportSpec():
            return adapter_import.prepare(spec, locations)
        case AdapterExtractSpec():
            return adapter_extract.prepare(spec, locations)
        case _:
            assert_never(spec)
