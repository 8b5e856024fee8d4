"""What a handler is given and what it gives back. A handler writes a staged folder; its caller publishes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..checkpoints.publish import StagedFolder
from ..checkpoints.room import Room
from ..engine.journal import Journal
from ..engine.part_queue import PartQueue, Segments
from ..engine.parts import Part
from ..engine.permit import Permit
from ..jobs.locations import Locations
from ..jobs.state import CheckpointResult, ConfigResult, Progress, VerifyResult
from ..mapping.model_config import ModelConfigs
from .rules import GivenRules, Rules


class SharedParts(PartQueue, Protocol):
    """Parts of this job that other workers do too."""

    @property
    def finished(self) -> Mapping[int, Segments]:
        """What was written, by whomever."""
        ...


class Board(Protocol):
    """Where parts are offered to other workers."""

    def offer(self, parts: Sequence[Part], journal: Journal) -> SharedParts:
        """All parts; those that the journal has are done. TransientError where the job is no longer ours."""
        ...


def _alone(target: Path) -> tuple[Path, ...]:
    return ()


def _nobody(folder: Path) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """The surroundings of one attempt."""

    locations: Locations
    job_id: str
    """Stands in the manifest, so that a later claim can tell its own output."""
    staging_suffix: str
    """Output is written to `<target>.partial-<staging_suffix>`; unique to the attempt."""
    report: Callable[[Progress], None]
    """Called several times a second while bytes move."""
    model_configs: ModelConfigs
    """Builds upstream's config object, somewhere off the copy path."""
    reserve: Callable[[Room, int], None]
    """Called once before the first byte is written, with the target's file system and the bytes that it needs."""
    copy_processes: int = 1
    gpu: bool = False
    """Models run, and matrices are multiplied, on the GPU that CUDA shows."""
    permit: Permit | None = None
    """Nothing is written when it is over."""
    earlier: Callable[[Path], Sequence[Path]] = _alone
    """Partial folders beside a target that earlier attempts left, the latest first."""
    lock: Callable[[Path], None] = _nobody
    """Called with the folder that will be written into, before anything is: others may want it too."""
    leaves_partial: bool = False
    """After an error, the partial folder is its caller's business."""
    board: Board | None = None
    rules: Rules = field(default_factory=GivenRules)
    """What holds where it reads and writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of a job that leaves no files."""

    result: ConfigResult | VerifyResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A whole, synced folder beside its target, waiting for `staged.publish()`."""

    staged: StagedFolder
    result: CheckpointResult
