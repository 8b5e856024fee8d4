"""A pool of processes that stay: each is one rank of a gloo group and runs functions by name, all ranks at once."""

import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

STAND_INS = Path(__file__).parent / "stand_ins"
_SECONDS = 120.0
"""One call, the first one's imports of about 10 s a rank included."""


@dataclass(slots=True)
class Ranks:
    """`size` ranks; with `transformer_engine`, Megatron finds its stand-in there. Started by the first call."""

    size: int
    transformer_engine: bool = False
    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ranks-")), init=False)
    """The store where ranks meet, and what they print."""
    _processes: list[tuple[BaseProcess, Connection]] = field(default_factory=list, init=False)

    def run(self, function: str, **arguments: object) -> list[Any]:
        """What `module:function` of this folder answers on each rank. A rank's error is raised with its traceback."""
        if not self._processes:
            self._start()
        for _, connection in self._processes:
            connection.send((function, arguments))
        deadline = time.monotonic() + _SECONDS
        answers = [_answer(process, connection, deadline) for process, connection in self._processes]
        for error in (answer for answer in answers if isinstance(answer, RankError)):
            # The other ranks may wait for this one in a collective for ever.
            self.close()
            raise error
        return answers

    def close(self) -> None:
        """End all ranks."""
        for process, connection in self._processes:
            connection.close()
            process.kill()
            process.join()
        self._processes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder.mkdir(exist_ok=True)
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            arguments = (rank, self.size, self._folder, theirs, self.transformer_engine)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append((process, ours))


class RankError(Exception):
    """What went wrong on one rank."""


def _answer(process: BaseProcess, connection: Connection, deadline: float) -> Any:
    if not connection.poll(max(0.0, deadline - time.monotonic())):
        return RankError(f"{process.name} gave no answer within {_SECONDS:.0f} s")
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return RankError(f"{process.name} ended with exit code {process.exitcode}")


def _serve(rank: int, size: int, folder: Path, connection: Connection, transformer_engine: bool) -> None:
    """The life of a rank: join the group, then run what is asked for until the pool closes the pipe."""
    if transformer_engine:
        sys.path.insert(0, str(STAND_INS))
    _print_into(folder / f"rank-{rank}.log")
    _join(rank, size, folder / "store")
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_named(function)(**arguments))
        except BaseException:  # DCP's CheckpointException is no Exception
            connection.send(RankError(f"rank {rank} of {size}:\n{traceback.format_exc()}"))


def _print_into(log: Path) -> None:
    """Megatron greets every model with a page of text."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _join(rank: int, size: int, meeting: Path) -> None:
    import torch
    from torch import distributed

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_SECONDS),
    )


def _named(function: str) -> Callable[..., Any]:
    module, name = function.split(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)
