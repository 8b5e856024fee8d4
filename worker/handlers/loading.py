"""`verify: load` of a setup: as many processes as the run has ranks load what was written, before it is published."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from ..checkpoints.iterations import iteration_folder
from ..jobs.errors import BadInputError
from ..jobs.setup_spec import SetupSpec
from ..jobs.state import Progress
from ..setups.layout import with_its_chunks
from ..setups.stages import fewest_gpus
from .context import JobContext
from .unverified import last_line

if TYPE_CHECKING:
    from .conversion import Conversion

_POLL_SECONDS = 0.2
_RANK_BYTES = 900 * 2**20
"""Of a process that has imported Megatron, beside its tensors."""


def verify_loads(conversion: "Conversion", spec: SetupSpec, staged: Path, context: JobContext) -> int:
    """How many processes did.

    BadInputError (`not_verified`) where a rank cannot build its part of the model, or finds a tensor missing.
    """
    ranks = fewest_gpus(spec.parallelism)
    folder = iteration_folder(staged if any(staged.glob("*/.metadata")) else conversion.source)
    _refuse_small_host(folder, ranks)
    context.report(Progress(phase="verifying", done_bytes=0, total_bytes=conversion.bytes))
    config = json.loads((staged / "model_config.json").read_bytes())
    with tempfile.TemporaryDirectory() as meeting, ExitStack() as stack:
        request = {
            "folder": str(folder),
            "config": config,
            "meeting": meeting,
            "size": ranks,
            "parallelism": with_its_chunks(spec.parallelism).model_dump(),
        }
        started = [_start(number, request, stack) for number in range(ranks)]
        _await(started, lambda done: _tell(context, conversion.bytes, done / ranks))
    return ranks


def _start(rank: int, request: Mapping[str, object], stack: ExitStack) -> "tuple[subprocess.Popen[bytes], IO[bytes]]":
    log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the stack
    stack.callback(log.close)
    command = [sys.executable, "-P", "-m", "worker", "load-rank", str(os.getpid())]
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
    stack.callback(process.kill)
    assert process.stdin is not None  # PIPE
    with process.stdin as asking:
        asking.write(json.dumps({**request, "rank": rank}).encode())
    return process, log


def _tell(context: JobContext, total: int, part: float) -> None:
    context.report(Progress(phase="verifying", done_bytes=int(part * total), total_bytes=total))


def _await(started: "list[tuple[subprocess.Popen[bytes], IO[bytes]]]", heard: Callable[[int], None]) -> None:
    ranks = len(started)
    while True:
        codes = [process.poll() for process, _ in started]
        for number, code in enumerate(codes):
            if code:
                raise _failed(number, ranks, code, started[number][1])
        heard(codes.count(0))
        if codes.count(0) == ranks:
            return
        time.sleep(_POLL_SECONDS)


def _failed(number: int, ranks: int, code: int, log: IO[bytes]) -> BadInputError:
    last = last_line(log)
    return BadInputError(
        "not_verified",
        f"loading at the run's parallelism, rank {number} of {ranks}",
        found=last if code > 0 else f"a process that died of signal {-code}",
        expected="every rank to build its part of the model and to find each of its tensors",
        next_step="Look at the job's log for the whole error; without `verify` it is published as it is.",
    )


def _refuse_small_host(folder: Path, ranks: int) -> None:
    """All ranks together hold the model once, and some of it twice while they load it."""
    weights = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    needed = 2 * weights + ranks * _RANK_BYTES
    free = psutil.virtual_memory().available
    if needed > free:
        raise BadInputError(
            "not_verified",
            f"verify: load by {ranks} processes",
            found=f"{free:,} bytes of free memory on this host",
            expected=f"about {needed:,}, for the weights twice and for each process",
            next_step="Run it on a larger host, or without `verify: load`.",
        )
