"""A trainer's profile: the files that it reads, and where it reads each key."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..jobs.setup_spec import ProfileName
from .trainer_run import TrainerRun


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadKey:
    """A key that a file of ours sets, and the trainer's file that reads it."""

    name: str
    read_by: str
    """Path inside the trainer's repository, of the profile's version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One trainer."""

    name: ProfileName
    trainer: str
    """Its name and the version that the keys were read in: `verl 0.6.1`."""
    keys: tuple[ReadKey, ...]
    files: Callable[[TrainerRun], Mapping[str, bytes]]
    """By their path inside the directory; the README is not among them. BadInputError where it has no such setting."""
    start: Callable[[TrainerRun], tuple[str, str, str]]
    """The README's three lines: what is here, how to start, what to set first."""
