"""Megatron's tracker file and the iteration folders that it points to."""

from pathlib import Path

from .refusal import bad_checkpoint
from .torch_dist import METADATA

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"


def iteration_name(iteration: int | None) -> str:
    """`release`, or Megatron's `iter_0000000` form."""
    return RELEASE if iteration is None else f"iter_{iteration:07d}"


def tracker_text(iteration: int | None) -> str:
    """What the tracker file says; without it Megatron starts from random weights, silently."""
    return RELEASE if iteration is None else str(iteration)


def iteration_folder(checkpoint: Path) -> Path:
    """The folder that a loader would take: the path itself, or what the tracker file says."""
    if (checkpoint / METADATA).exists():
        return checkpoint
    tracker = checkpoint / TRACKER
    if not tracker.exists():
        raise bad_checkpoint(checkpoint, f"neither {METADATA} nor {TRACKER}", "a torch_dist checkpoint", missing=True)
    text = tracker.read_text().strip()
    if text != RELEASE and not (text.isascii() and text.isdecimal()):
        raise bad_checkpoint(tracker, repr(text[:40]), f"an iteration number or {RELEASE!r}")
    folder = checkpoint / iteration_name(None if text == RELEASE else int(text))
    if not (folder / METADATA).exists():
        raise bad_checkpoint(folder, f"no {METADATA}", f"the checkpoint that {TRACKER} names", missing=True)
    return folder
