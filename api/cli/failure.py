"""How a command ends when something is wrong: one block on stderr, one exit code."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

from pydantic import ValidationError

from worker.jobs.errors import BadInputError, FerryError
from worker.jobs.misreading import Misreading
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    AdapterUse,
    ConfigSpec,
    ExportSpec,
    ImportSpec,
    JobRequest,
    MergeSpec,
    SetupSpec,
    VerifySpec,
)

INTERRUPTED = 130
_SPECS = (ConfigSpec, ImportSpec, ExportSpec, MergeSpec, SetupSpec, VerifySpec)
_ADAPTERS = (AdapterUse, AdapterExportSpec, AdapterImportSpec, AdapterExtractSpec)
_MODELS = {model.__name__: model for model in (JobRequest, *_SPECS, *_ADAPTERS)}
"""What a command may make of its arguments."""


@contextmanager
def ending(stream: TextIO) -> Generator[None]:
    """Turns FerryError into text and an exit code, and Ctrl-C into 130."""
    try:
        yield
    except FerryError as error:
        stream.write(f"{block(error)}\n")
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)  # `ferry jobs | head` has seen enough.


@contextmanager
def reading_arguments() -> Generator[None]:
    """An argument that no job spec takes is bad input, as the server would say."""
    try:
        yield
    except ValidationError as error:
        read = Misreading.first_of(error, _MODELS.get(error.title))
        raise BadInputError(
            "bad_request",
            f"spec field {read.field}" if read.field else "spec",
            found=read.found,
            expected=read.expected,
            next_step=f"{read.hint}Correct the command, or the file that it reads.",
        ) from error


def exit_code(error: FerryError) -> int:
    """2: mend the request or its input. 1: the surroundings, or Ferry itself."""
    return 2 if 400 <= error.info.status < 500 else 1


def block(error: FerryError) -> str:
    """The error for a person."""
    info = error.info
    return f"ferry: {info.thing}\n  found     {info.found}\n  expected  {info.expected}\n  next      {info.next_step}"
