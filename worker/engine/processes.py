"""Copy processes: forked, each given part after part; their progress shared, their end watched."""

import json
import mmap
import os
import selectors
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from ..jobs.errors import ErrorInfo, FerryError, InternalError, TransientError, error_from_info, error_from_os
from ..lifeline import die_with_parent
from .computed import import_loops
from .copy import Segment, copy_part, digest_part, sync_file
from .part_queue import PartQueue
from .parts import Part
from .permit import Permit
from .reading import SourceFiles
from .throttle import IoLimit, Throttle

_NUMBER = struct.Struct("<I")
_COUNTER = struct.Struct("<Q")
_POLL_SECONDS = 0.1
_MOST_ON_GPU = 4
"""Each process takes seconds and half a gigabyte to set CUDA up; a few keep the bus busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How many processes copy, where they compute, and the limits that they keep together."""

    processes: int = 1
    limits: tuple[IoLimit, ...] = ()
    gpu: bool = False
    """Arithmetic is done on the GPU that CUDA shows."""
    permit: Permit | None = None
    """Nothing is written when it is over."""


class Deed(Protocol):
    """What is done with parts, in each process."""

    def do(self, part: Part, moved: Callable[[int], None], sources: SourceFiles) -> tuple[Segment, ...]:
        """One part; `moved` hears of its bytes."""
        ...

    def end(self, files: Iterable[str]) -> None:
        """After the last part: the files that this process had to do with."""
        ...


@dataclass(frozen=True, slots=True)
class Copy:
    """Write parts into existing files under `folder`."""

    folder: Path
    sync_parts: bool = False
    """Each part is on the disk before it counts as done; else all are at the end."""

    def do(self, part: Part, moved: Callable[[int], None], sources: SourceFiles) -> tuple[Segment, ...]:
        segments = copy_part(part, self.folder / part.file, moved, sources)
        if self.sync_parts:
            sync_file(self.folder / part.file)
        return segments

    def end(self, files: Iterable[str]) -> None:
        if not self.sync_parts:
            for file in files:
                sync_file(self.folder / file)


@dataclass(frozen=True, slots=True)
class Digest:
    """Read parts, and write nothing."""

    def do(self, part: Part, moved: Callable[[int], None], sources: SourceFiles) -> tuple[Segment, ...]:
        return digest_part(part, moved, sources)

    def end(self, files: Iterable[str]) -> None:
        pass


def do_parts(
    parts: tuple[Part, ...], queue: PartQueue, deed: Deed, options: CopyOptions, report: Callable[[int], None]
) -> None:
    """Do the parts that `queue` gives, until it is over.

    `report` hears the bytes done so far several times a second. A failing process stops all; its error is raised.
    """
    processes = max(1, min(options.processes, len(parts), _MOST_ON_GPU if options.gpu else len(parts)))
    counters = mmap.mmap(-1, _COUNTER.size * processes)
    if not options.gpu:
        import_loops(extent for part in parts for span in part.spans for extent in span.extents)
    crew = _Crew(queue)
    try:
        for number in range(processes):
            crew.children.append(
                _fork(parts, deed, _Counter(counters, number), options)
            )  # a fork that fails must leave the others to be ended
        crew.work(lambda: report(_total(counters)))
    finally:
        for child in crew.children:
            child.end()
    report(_total(counters))
    counters.close()


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


@dataclass(slots=True, eq=False)
class _Child:
    """A copy process, seen from its parent."""

    pid: int
    line: socket.socket
    busy: bool = False
    text: bytearray = field(default_factory=bytearray)

    def give(self, number: int) -> None:
        self.line.sendall(_NUMBER.pack(number))
        self.busy = True

    def answers(self) -> list[dict[str, Any]]:
        """What it said; TransientError where it ended without its last word."""
        piece = self.line.recv(2**18)
        if not piece:
            raise _lost(self)
        self.text += piece
        *lines, rest = bytes(self.text).split(b"\n")
        self.text = bytearray(rest)
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        self.line.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@dataclass(slots=True)
class _Crew:
    """Gives parts to whoever is free, and hears what became of them."""

    queue: PartQueue
    children: list[_Child] = field(default_factory=list[_Child])

    def work(self, report: Callable[[], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.line, selectors.EVENT_READ, child)
            while not self._finished():
                self._listen(selector, report)
            for child in self.children:
                child.line.shutdown(socket.SHUT_WR)
                child.busy = True
            while any(child.busy for child in self.children):
                self._listen(selector, report)

    def _finished(self) -> bool:
        for child in self.children:
            if not child.busy and (number := self.queue.take()) is not None:
                child.give(number)
        return not any(child.busy for child in self.children) and self.queue.over()

    def _listen(self, selector: selectors.BaseSelector, report: Callable[[], None]) -> None:
        for key, _ in selector.select(_POLL_SECONDS):
            child: _Child = key.data
            for answer in child.answers():
                self._heard(answer)
                child.busy = False
                if "end" in answer:
                    selector.unregister(child.line)
        report()
        self.queue.tend()

    def _heard(self, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise error_from_info(ErrorInfo.model_validate(answer["error"]))
        if "part" in answer:
            self.queue.done(answer["part"], tuple(Segment(**row) for row in answer["segments"]))


def _fork(parts: tuple[Part, ...], deed: Deed, counter: _Counter, options: CopyOptions) -> _Child:
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _live(parts, deed, counter, options, parent, theirs)
    theirs.close()
    return _Child(pid, ours)


def _live(
    parts: tuple[Part, ...], deed: Deed, counter: _Counter, options: CopyOptions, parent: int, line: socket.socket
) -> NoReturn:
    """A copy process from its first to its last moment. It must not outlive its parent, nor return into its code."""
    code = 1
    try:
        die_with_parent(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _tell(line, _last_word(parts, deed, counter, options, line))
        code = 0
    finally:
        os._exit(code)


def _tell(line: socket.socket, answer: dict[str, Any]) -> None:
    line.sendall(json.dumps(answer).encode() + b"\n")


def _last_word(
    parts: tuple[Part, ...], deed: Deed, counter: _Counter, options: CopyOptions, line: socket.socket
) -> dict[str, object]:
    try:
        _do_given(parts, deed, counter, options, line)
        return {"end": True}
    except FerryError as error:
        return {"error": error.info.model_dump()}
    except OSError as error:
        return {"error": error_from_os(error).info.model_dump()}
    except Exception as error:
        return {"error": _bug(error).info.model_dump()}


def _do_given(
    parts: tuple[Part, ...], deed: Deed, counter: _Counter, options: CopyOptions, line: socket.socket
) -> None:
    """One part after the other, then what belongs to the end."""
    throttle = Throttle(options.limits)

    def moved(count: int) -> None:
        counter.add(count)
        throttle.wait(count)
        if options.permit:
            options.permit.check()

    sources = _sources(options)
    files: set[str] = set()
    while asked := line.recv(_NUMBER.size, socket.MSG_WAITALL):
        number: int = _NUMBER.unpack(asked)[0]
        part = parts[number]
        files.add(part.file)
        segments = deed.do(part, moved, sources)
        _tell(line, {"part": number, "segments": [asdict(segment) for segment in segments]})
    deed.end(sorted(files))


def _sources(options: CopyOptions) -> SourceFiles:
    if not options.gpu:
        return SourceFiles()
    from .computed import GPU_PIECE_BYTES
    from .gpu_arithmetic import on_gpu

    return SourceFiles(on_gpu, GPU_PIECE_BYTES)


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
