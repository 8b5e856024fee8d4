"""Megatron's tracker file and the iteration folders that it points to."""

from pathlib import Path

from .folder_kinds import kind_of
from .legacy_ranks import is_legacy
from .refusal import bad_checkpoint
from .torch_dist import METADATA

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
_MOST_DIGITS = 18


def iteration_name(iteration: int | None) -> str:
    """`release`, or Megatron's `iter_0000000` form."""
    return RELEASE if iteration is None else f"iter_{iteration:07d}"


def tracker_text(iteration: int | None) -> str:
    """What the tracker file says; without it Megatron starts from random weights, silently."""
    return RELEASE if iteration is None else str(iteration)


def iteration_folder(checkpoint: Path) -> Path:
    """The folder that a loader would take: the path itself, or what the tracker file says."""
    if _holds_weights(checkpoint):
        return checkpoint
    tracker = checkpoint / TRACKER
    if not tracker.exists():
        found = kind_of(checkpoint) or f"neither {METADATA}, nor mp_rank folders, nor {TRACKER}"
        raise bad_checkpoint(checkpoint, found, "a Megatron checkpoint", missing=True)
    text = tracker.read_text(errors="replace").strip()
    if text != RELEASE and not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise bad_checkpoint(tracker, repr(text[:40]), f"an iteration number or {RELEASE!r}")
    folder = checkpoint / iteration_name(None if text == RELEASE else int(text))
    if not _holds_weights(folder):
        found = f"no {METADATA} and no mp_rank folders"
        raise bad_checkpoint(folder, found, f"the checkpoint that {TRACKER} names", missing=True)
    return folder


def asked_tracker(checkpoint: Path) -> tuple[Path, ...]:
    """The tracker file, where it is what decides `iteration_folder`."""
    return () if _holds_weights(checkpoint) else (checkpoint / TRACKER,)


def _holds_weights(folder: Path) -> bool:
    return (folder / METADATA).exists() or is_legacy(folder)
