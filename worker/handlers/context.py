"""What a handler is given and what it gives back. A handler writes a staged folder; its caller publishes it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..checkpoints.publish import StagedFolder
from ..checkpoints.room import Room
from ..jobs.locations import Locations
from ..jobs.state import CheckpointResult, ConfigResult, Progress, VerifyResult
from ..mapping.model_config import ModelConfigs
from .rules import GivenRules, Rules


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
