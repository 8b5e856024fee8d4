"""What an attempt tells the process that watches it: JSON lines over a pipe, the last one being its end."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..jobs.errors import ErrorInfo
from ..jobs.state import CheckpointResult, ConfigResult, Progress, VerifyResult


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Moved(_Line):
    """Progress was made."""

    line: Literal["moved"] = "moved"
    progress: Progress


class Needs(_Line):
    """So many bytes are about to be written to a file system that has so many free."""

    line: Literal["needs"] = "needs"
    filesystem: str
    needed_bytes: int
    free_bytes: int


class Sees(_Line):
    """The GPUs that CUDA shows to the attempt."""

    line: Literal["sees"] = "sees"
    devices: tuple[str, ...]


class Answered(_Line):
    """The end of a job that leaves no files."""

    line: Literal["answered"] = "answered"
    result: Annotated[ConfigResult | VerifyResult, Field(discriminator="kind")]


class Staged(_Line):
    """A whole, synced folder beside its target, for the watching process to publish."""

    line: Literal["staged"] = "staged"
    folder: Path
    target: Path
    replaces: bool = False
    result: CheckpointResult


class Raised(_Line):
    """An error ended the attempt."""

    line: Literal["raised"] = "raised"
    error: ErrorInfo


class Helped(_Line):
    """The end of an attempt at another worker's job."""

    line: Literal["helped"] = "helped"
    parts: int
    more: bool
    """Some were left to others."""


End = Answered | Staged | Raised | Helped
Word = Moved | Needs | Sees | End
Line = Annotated[Word, Field(discriminator="line")]

_LINE: TypeAdapter[Line] = TypeAdapter(Line)


def encode(line: Word) -> bytes:
    """The line with its newline."""
    return line.model_dump_json().encode() + b"\n"


def decode(text: bytes) -> Word:
    """The line that `encode` wrote."""
    return _LINE.validate_json(text)
