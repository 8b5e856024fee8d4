"""Progress on stderr: a bar for a terminal, a line now and then for a log."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from worker.jobs.state import Progress

from .sizes import show_size

Show = Callable[[Progress], None]


@contextmanager
def showing(title: str) -> Generator[Show]:
    """Something to call with each progress."""
    if sys.stderr.isatty():
        with _bar(title) as show:
            yield show
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Generator[Show]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        TextColumn("[dim]{task.fields[phase]:<10}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, phase="waiting")

        def show(progress: Progress) -> None:
            total = progress.total_bytes or None
            bar.update(task, completed=progress.done_bytes, total=total, phase=progress.phase)

        yield show


def _lines(title: str) -> Show:
    """A line for each phase, and for each quarter of the bytes."""
    said: set[tuple[str, int]] = set()

    def show(progress: Progress) -> None:
        quarter = 4 * progress.done_bytes // progress.total_bytes if progress.total_bytes else 0
        if (progress.phase, quarter) in said:
            return
        said.add((progress.phase, quarter))
        done, total = show_size(progress.done_bytes), show_size(progress.total_bytes)
        sys.stderr.write(f"{title}: {progress.phase}, {done} of {total}\n")
        sys.stderr.flush()

    return show
