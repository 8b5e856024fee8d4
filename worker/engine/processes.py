"""Copy processes: forked, each taking the next part until none is left; their progress shared, their end watched."""

import json
import mmap
import os
import selectors
import signal
import struct
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..jobs.errors import ErrorInfo, FerryError, InternalError, TransientError, error_from_info, error_from_os
from ..lifeline import die_with_parent
from .copy import Segment, copy_part, digest_part, sync_file
from .parts import Part
from .throttle import IoLimit, Throttle

_NUMBER = struct.Struct("<I")
_COUNTER = struct.Struct("<Q")
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How many processes copy, and the limits that they keep together."""

    processes: int = 1
    limits: tuple[IoLimit, ...] = ()


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    results: int
    """Read end of the pipe on which it answers."""


class Deed(Protocol):
    """What is done with parts, in each process."""

    def do(self, part: Part, moved: Callable[[int], None]) -> tuple[Segment, ...]:
        """One part; `moved` hears of its bytes."""
        ...

    def end(self, files: Iterable[str]) -> None:
        """After the last part: the files that this process had to do with."""
        ...


@dataclass(frozen=True, slots=True)
class Copy:
    """Write parts into existing files under `folder`."""

    folder: Path

    def do(self, part: Part, moved: Callable[[int], None]) -> tuple[Segment, ...]:
        return copy_part(part, self.folder / part.file, moved)

    def end(self, files: Iterable[str]) -> None:
        for file in files:
            sync_file(self.folder / file)


@dataclass(frozen=True, slots=True)
class Digest:
    """Read parts, and write nothing."""

    def do(self, part: Part, moved: Callable[[int], None]) -> tuple[Segment, ...]:
        return digest_part(part, moved)

    def end(self, files: Iterable[str]) -> None:
        pass


def do_parts(
    parts: tuple[Part, ...], deed: Deed, options: CopyOptions, report: Callable[[int], None]
) -> tuple[tuple[Segment, ...], ...]:
    """Do all parts; answers the segments of each, in the order of `parts`.

    `report` hears the bytes done so far several times a second. A failing process stops all; its error is raised.
    """
    processes = max(1, min(options.processes, len(parts)))
    counters = mmap.mmap(-1, _COUNTER.size * processes)
    queue = _part_queue(len(parts))
    children: list[_Child] = []
    try:
        for number in range(processes):
            children.append(_fork(parts, deed, queue, _Counter(counters, number), options))  # noqa: PERF401  # a fork that fails must leave the others to be ended
        answers = _collect(children, lambda: report(_total(counters)))
    finally:
        os.close(queue)
        for child in children:
            _end(child)
    report(_total(counters))
    counters.close()
    return tuple(answers[number] for number in range(len(parts)))


def _part_queue(count: int) -> int:
    """A file of part numbers; forked processes share its offset, so each number is read once."""
    descriptor = os.memfd_create("parts")
    os.write(descriptor, b"".join(_NUMBER.pack(number) for number in range(count)))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _total(counters: mmap.mmap) -> int:
    return sum(value for (value,) in _COUNTER.iter_unpack(counters[:]))


@dataclass(slots=True)
class _Counter:
    """One process's own place in the shared memory."""

    memory: mmap.mmap
    number: int
    value: int = 0

    def add(self, moved: int) -> None:
        self.value += moved
        _COUNTER.pack_into(self.memory, self.number * _COUNTER.size, self.value)


def _fork(parts: tuple[Part, ...], deed: Deed, queue: int, counter: _Counter, options: CopyOptions) -> _Child:
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _live(parts, deed, queue, counter, options, parent, writing)
    os.close(writing)
    return _Child(pid, reading)


def _live(
    parts: tuple[Part, ...],
    deed: Deed,
    queue: int,
    counter: _Counter,
    options: CopyOptions,
    parent: int,
    answers: int,
) -> NoReturn:
    """A copy process from its first to its last moment. It must not outlive its parent, nor return into its code."""
    code = 1
    try:
        die_with_parent(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        with os.fdopen(answers, "w") as out:
            json.dump(_answer(parts, deed, queue, counter, options), out)
        code = 0
    finally:
        os._exit(code)


def _answer(
    parts: tuple[Part, ...], deed: Deed, queue: int, counter: _Counter, options: CopyOptions
) -> dict[str, object]:
    try:
        return {"segments": _do_queued(parts, deed, queue, counter, options)}
    except FerryError as error:
        return {"error": error.info.model_dump()}
    except OSError as error:
        return {"error": error_from_os(error).info.model_dump()}
    except Exception as error:
        return {"error": _bug(error).info.model_dump()}


def _do_queued(
    parts: tuple[Part, ...], deed: Deed, queue: int, counter: _Counter, options: CopyOptions
) -> dict[int, list[dict[str, object]]]:
    """Take parts until none is left, then end."""
    throttle = Throttle(options.limits)

    def moved(count: int) -> None:
        counter.add(count)
        throttle.wait(count)

    segments: dict[int, list[dict[str, object]]] = {}
    while number := os.read(queue, _NUMBER.size):
        part: int = _NUMBER.unpack(number)[0]
        segments[part] = [asdict(segment) for segment in deed.do(parts[part], moved)]
    deed.end({parts[part].file for part in segments})
    return segments


def _collect(children: list[_Child], report: Callable[[], None]) -> dict[int, tuple[Segment, ...]]:
    """Every child's answer; raises the first error that comes in."""
    answers: dict[int, tuple[Segment, ...]] = {}
    texts: dict[int, bytearray] = {child.results: bytearray() for child in children}
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.results, selectors.EVENT_READ, child)
        while selector.get_map():
            for key, _ in selector.select(_POLL_SECONDS):
                piece = os.read(key.fd, 2**16)
                texts[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                    answers |= _read_answer(key.data, bytes(texts[key.fd]))
            report()
    return answers


def _read_answer(child: _Child, text: bytes) -> dict[int, tuple[Segment, ...]]:
    if not text:
        raise _lost(child)
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise error_from_info(ErrorInfo.model_validate(answer["error"]))
    return {int(part): tuple(Segment(**row) for row in rows) for part, rows in answer["segments"].items()}


def _end(child: _Child) -> None:
    os.close(child.results)
    try:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _lost(child: _Child) -> TransientError:
    return TransientError(
        "attempt_lost",
        f"copy process {child.pid}",
        found="its end without an answer (killed, perhaps for memory)",
        expected="the digests of what it copied",
        next_step="Retry; if it repeats, look for the kernel's out-of-memory messages.",
    )


def _bug(error: Exception) -> InternalError:
    traceback.print_exc()
    return InternalError(
        "internal",
        "a copy process",
        found=f"{type(error).__name__}: {error}",
        expected="no unforeseen error",
        next_step="Report this with the traceback from the worker's log.",
    )
