"""Import and export of a 3 GB checkpoint against `cp -r` of the same bytes: seconds, ratios and memory.

`python -m tests.benchmarks.convert` from the repository's root. Prints; asserts nothing. `--layers 113` makes 15 GB.
Before each leg its source is read into the page cache (`warm`) or dropped from it (`cold`).
"""

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from .legs import Bench, Times, ferry_command, plain_copy, worker_command
from .random_checkpoint import Size, make
from .warm_worker import warm_worker

_MEBIBYTE = 2**20
_CP = "cp"
_COMPARED = ("copy", "command", "ferry")
"""Times that stand against those of a plain copy."""

Leg = Callable[[], Times]


@dataclass(slots=True)
class Results:
    """What each leg took, round by round."""

    runs: dict[str, list[Times]] = field(default_factory=dict[str, list[Times]])

    def add(self, leg: str, times: Times) -> None:
        """Keep one run and say that it happened."""
        self.runs.setdefault(leg, []).append(times)
        print(f"  {leg:28}" + ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.seconds.items()), flush=True)

    def seconds(self, leg: str) -> dict[str, float]:
        """Medians by name."""
        runs = self.runs[leg]
        return {name: median(run.seconds[name] for run in runs) for name in runs[0].seconds}

    def memory(self, leg: str) -> dict[str, int]:
        """Peaks by what the process is."""
        roles = {role for run in self.runs[leg] for role in run.memory}
        return {role: max(run.memory.get(role, 0) for run in self.runs[leg]) for role in sorted(roles)}


def main() -> None:
    """Make the checkpoints, run the rounds, print the table."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="ferry-benchmark-") as temporary:
        bench = Bench(folder=(options.folder or Path(temporary)).absolute())
        bench.folder.mkdir(parents=True, exist_ok=True)
        size = Size(layers=options.layers)
        print(_machine(bench.folder), f"checkpoint: {size.nbytes / 1e9:.2f} GB in {bench.folder}", sep="\n")
        _prepare(bench, size)
        results = Results()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}")
            for cache in options.cache:
                for name, source, leg in _command_legs(bench, options):
                    _run(bench, results, f"{cache} {name}", leg, lambda source=source, at=cache: _CACHES[at](source))
        if not options.no_server:
            _warm_rounds(bench, results, options)
        bench.clear()
        _report(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="convert", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to keep the checkpoint for the next time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="copy processes to try")
    parser.add_argument("--layers", type=int, default=16, help="16 are 1.5 billion parameters")
    parser.add_argument("--cache", choices=_CACHES, nargs="+", default=["warm", "cold"])
    parser.add_argument("--no-server", action="store_true", help="leave out the legs of the warm worker")
    parser.add_argument("--no-ferry", action="store_true", help="leave out the legs of the installed command")
    return parser.parse_args()


def _prepare(bench: Bench, size: Size) -> None:
    make(bench.hf, size)
    bench.clear()
    shutil.rmtree(bench.mcore, ignore_errors=True)  # its layout is this version's, or the export tells nothing
    worker_command(bench.specs()["import"], 2)
    bench.out.rename(bench.mcore)


def _command_legs(bench: Bench, options: argparse.Namespace) -> Iterator[tuple[str, Path, Leg]]:
    yield _CP, bench.hf, lambda: plain_copy(bench)
    for kind, spec in bench.specs().items():
        source = Path(spec.source)
        for count in options.processes:
            yield f"{kind}, {_processes(count)}", source, lambda spec=spec, count=count: worker_command(spec, count)
            if not options.no_ferry:
                name = f"ferry {kind}, {_processes(count)}"
                yield name, source, lambda spec=spec, count=count: ferry_command(spec, count)


def _read(folder: Path) -> None:
    """Into the page cache, so far as it fits."""
    room = bytearray(_MEBIBYTE)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def _drop(folder: Path) -> None:
    """Out of the page cache; what is in memory alone (tmpfs) stays."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


_CACHES: dict[str, Callable[[Path], None]] = {"warm": _read, "cold": _drop}


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _warm_rounds(bench: Bench, results: Results, options: argparse.Namespace) -> None:
    bench.clear()
    with warm_worker(bench, max(options.processes)) as worker:
        for number in range(options.rounds):
            print(f"server round {number + 1} of {options.rounds}")
            _run(bench, results, f"server {_CP}", lambda: plain_copy(bench), lambda: _read(bench.hf))
            for kind, spec in bench.specs().items():
                source = Path(spec.source)
                _run(
                    bench,
                    results,
                    f"server {kind}",
                    lambda spec=spec: worker.run(spec),
                    lambda source=source: _read(source),
                )


def _run(bench: Bench, results: Results, name: str, leg: Leg, prepare: Callable[[], None]) -> None:
    bench.clear()
    prepare()
    results.add(name, leg())


def _machine(folder: Path) -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"machine: {os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, file system {_file_system(folder)}"
    )


def _file_system(folder: Path) -> str:
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype


def _report(results: Results) -> None:
    print("\nmedians in seconds (ratio to cp -r and sync of the same rounds); peak anonymous memory of one process")
    for leg in results.runs:
        base = results.seconds(f"{leg.split()[0]} {_CP}")["copy"]
        seconds = [_cell(name, value, base) for name, value in results.seconds(leg).items()]
        memory = [f"{role} {nbytes / _MEBIBYTE:.0f} MiB" for role, nbytes in results.memory(leg).items()]
        print(f"{leg:28}" + ", ".join(seconds + memory))


def _cell(name: str, seconds: float, base: float) -> str:
    ratio = f" ({seconds / base:.2f}x)" if name in _COMPARED else ""
    return f"{name} {seconds:.2f}{ratio}"


if __name__ == "__main__":
    main()
