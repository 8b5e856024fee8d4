"""A pool of processes that stay: each is one rank of a gloo group and runs functions by name, all ranks at once."""

import importlib
import multiprocessing
import os
import shutil
import signal
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

from worker.verification.kernels import stand_in_for_kernels

_SECONDS = 120.0
"""One call, the first one's imports of about 10 s a rank included."""


@dataclass(frozen=True, slots=True)
class _Rank:
    """One process of the pool, our end of its pipe, and what it prints."""

    process: BaseProcess
    connection: Connection
    log: Path

    def answer(self, deadline: float) -> Any:
        """What it answers, or why it does not."""
        if not self.connection.poll(max(0.0, deadline - time.monotonic())):
            return RankError(f"{self.process.name} gave no answer within {_SECONDS:.0f} s:\n{self.log.read_text()}")
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            return RankError(f"{self.process.name} ended ({self.process.exitcode}):\n{self.log.read_text()}")

    def wake(self) -> None:
        """Go on after a rest."""
        os.kill(self._pid, signal.SIGCONT)

    def rest(self) -> None:
        """Stand still: gloo's threads, a dozen for each size that is set, look for work a hundred times a second."""
        os.kill(self._pid, signal.SIGSTOP)

    @property
    def _pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return pid

    def close(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.join()


@dataclass(slots=True)
class Ranks:
    """`size` ranks; with `transformer_engine`, Megatron finds its stand-in there. Started by the first call.

    `backend` is "gloo", or "nccl" for ranks with a GPU each.
    """

    size: int
    transformer_engine: bool = False
    backend: str = "gloo"
    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ranks-")), init=False)
    _ranks: list[_Rank] = field(default_factory=list[_Rank], init=False)

    def run(self, function: str, **arguments: object) -> list[Any]:
        """What `module:function` answers on each rank. A rank's error is raised with its traceback."""
        if not self._ranks:
            self._start()
        for rank in self._ranks:
            rank.wake()
            rank.connection.send((function, arguments))
        deadline = time.monotonic() + _SECONDS
        answers = [rank.answer(deadline) for rank in self._ranks]
        for error in (answer for answer in answers if isinstance(answer, RankError)):
            if self.size > 1:  # the other ranks may wait for this one in a collective for ever
                self.close()
            raise error
        if self.backend == "gloo":
            for rank in self._ranks:
                rank.rest()
        return answers

    def close(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.close()
        self._ranks.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder.mkdir(exist_ok=True)
        for number in range(self.size):
            ours, theirs = context.Pipe()
            arguments = (number, self.size, self._folder, theirs, self.transformer_engine, self.backend)
            process = context.Process(target=_serve, args=arguments, daemon=True, name=f"rank {number} of {self.size}")
            process.start()
            theirs.close()
            self._ranks.append(_Rank(process, ours, _log(self._folder, number)))


class RankError(Exception):
    """What went wrong on one rank."""


def _log(folder: Path, number: int) -> Path:
    return folder / f"rank-{number}.log"


def _serve(rank: int, size: int, folder: Path, connection: Connection, transformer_engine: bool, backend: str) -> None:
    """The life of a rank: join the group, then run what is asked for until the pool closes the pipe."""
    if transformer_engine:
        stand_in_for_kernels()
    _print_into(_log(folder, rank))
    _join(rank, size, folder / "store", backend)
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


def _join(rank: int, size: int, meeting: Path, backend: str) -> None:
    import torch
    from torch import distributed

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        backend,
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_SECONDS),
    )


def _named(function: str) -> Callable[..., Any]:
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)
