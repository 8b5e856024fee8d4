"""Files read once, from their first byte to their last, for the digests of their spans."""

from collections.abc import Callable
from pathlib import Path

from ..checkpoints.extents import TargetFile
from ..engine.convert import read_segments
from ..engine.copy import Segment
from ..engine.processes import CopyOptions
from ..jobs.state import Progress
from .context import JobContext

_WHOLE = 2**63
"""No span is cut: two checkpoints cut theirs at different places."""


def read_all(
    files: tuple[TargetFile, ...], places: tuple[Path, ...], context: JobContext, total: int
) -> dict[str, tuple[Segment, ...]]:
    """The digest of every span, read at the speed that the places' roots allow; progress counts to `total` bytes."""
    limits = tuple(dict.fromkeys(limit for place in places for limit in context.rules.io_limits(place, place)))
    options = CopyOptions(processes=context.copy_processes, limits=limits)
    return read_segments(files, options, _reading(context, total), segment_bytes=_WHOLE)


def _reading(context: JobContext, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        context.report(Progress(phase="reading", done_bytes=min(done, total), total_bytes=total))

    return report
