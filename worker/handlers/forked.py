"""Work in forked processes: each takes its share, tells what it moved, and answers names; its memory goes with it."""

import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..jobs.errors import ErrorInfo, FerryError, InternalError, error_from_info, error_from_os
from ..lifeline import die_with_parent
from .unverified import lost

Heard = Callable[[int], None]
"""Told of bytes, as they are done."""

Work = Callable[[int, int, Heard], list[str]]
"""(number of the process, how many there are, ...) -> the names that its share comes to."""


def forked(work: Work, count: int, heard: Heard) -> list[str]:
    """`work` in `count` processes; what they answer, in one list."""
    parent = os.getpid()
    children: list[tuple[int, int]] = []
    try:
        for number in range(count):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _live(work, number, count, parent, writing)
            os.close(writing)
            children.append((pid, reading))
        return [name for _, reading in children for name in _listen(reading, heard)]
    finally:
        for pid, reading in children:
            os.close(reading)
            _end(pid)


def _live(work: Work, number: int, count: int, parent: int, telling: int) -> None:
    """Never returns."""
    code = 1
    try:
        die_with_parent(parent)

        def heard(moved: int) -> None:
            os.write(telling, json.dumps({"moved": moved}).encode() + b"\n")

        try:
            answer: dict[str, Any] = {"wrong": work(number, count, heard)}
        except FerryError as error:
            answer = {"error": error.info.model_dump()}
        except OSError as error:
            answer = {"error": error_from_os(error).info.model_dump()}
        except BaseException as error:  # PyTorch's CheckpointException is no Exception.
            traceback.print_exc()
            answer = {"error": _bug(error).info.model_dump()}
        os.write(telling, json.dumps(answer).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _listen(reading: int, heard: Heard) -> list[str]:
    with os.fdopen(reading, closefd=False) as lines:
        for line in lines:
            answer: Mapping[str, Any] = json.loads(line)
            if "moved" in answer:
                heard(answer["moved"])
            elif "error" in answer:
                raise error_from_info(ErrorInfo.model_validate(answer["error"]))
            else:
                return answer["wrong"]
    raise lost()


def _end(pid: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _bug(error: BaseException) -> InternalError:
    return InternalError(
        "internal",
        "verifying tensors",
        found=f"{type(error).__name__}: {error}",
        expected="no unforeseen error",
        next_step="Report this with the traceback from the worker's log.",
    )
