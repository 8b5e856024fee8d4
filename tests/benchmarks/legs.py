"""What is timed: a plain copy, and conversions by command."""

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from worker.jobs.spec import ExportSpec, ImportSpec
from worker.jobs.state import CheckpointResult, Timings

from .measured import Measured, measure

_FERRY = Path(sys.executable).with_name("ferry")


def made_folder(path: str) -> Path:
    """An option's folder, made where it is not there yet."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds by name and peak anonymous bytes of one process, of one run of a leg."""

    seconds: dict[str, float]
    memory: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where the checkpoints lie: `hf` and its import `mcore`. Each leg writes `out`, which is cleared for the next."""

    folder: Path

    @property
    def hf(self) -> Path:
        return self.folder / "hf"

    @property
    def mcore(self) -> Path:
        return self.folder / "mcore"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def specs(self) -> dict[str, ImportSpec | ExportSpec]:
        """Both directions."""
        return {
            "import": ImportSpec(source=str(self.hf), target=str(self.out)),
            "export": ExportSpec(source=str(self.mcore), target=str(self.out)),
        }

    def clear(self) -> None:
        """Remove the last leg's output; nothing is left to be written in the background."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()


def plain_copy(bench: Bench) -> Times:
    """`cp -r` of the HF checkpoint, synced file by file as ours is."""
    started = time.monotonic()
    copied = measure(["cp", "-r", str(bench.hf), str(bench.out)])
    for path in (*bench.out.iterdir(), bench.out):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return Times(seconds={"copy": time.monotonic() - started, "cp alone": copied.seconds}, memory=copied.memory)


def worker_command(spec: ImportSpec | ExportSpec, processes: int) -> Times:
    """`python -m worker run`: its copy phase, its other phases, and the whole command."""
    options = ["--copy-processes", str(processes)]
    measured = measure([sys.executable, "-m", "worker", "run", spec.model_dump_json(), *options])
    timings = _timings(measured)
    seconds = {
        "copy": timings.copy_seconds,
        "plan": timings.plan_seconds,
        "finalize": timings.finalize_seconds,
        "command": measured.seconds,
    }
    return Times(seconds=seconds, memory=measured.memory)


def ferry_command(spec: ImportSpec | ExportSpec, processes: int) -> Times:
    """`ferry import --local`: the whole command."""
    options = ["--local", "--jobs", str(processes)]
    measured = measure([str(_FERRY), spec.kind, spec.source, spec.target, *options])
    return Times(seconds={"ferry": measured.seconds}, memory=measured.memory)


def _timings(measured: Measured) -> Timings:
    """From the command's last line."""
    last = json.loads(measured.output.splitlines()[-1])
    return CheckpointResult.model_validate(last["result"]).timings
