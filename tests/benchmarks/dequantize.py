"""Arithmetic timed: gigabytes of output a second of dequantization, casts and quantization, beside `cp` of that output.

`python -m tests.benchmarks.dequantize [--folder DIR] [--gpu]` from the repository's root. Prints; asserts nothing.
"""

import argparse
import json
import os
import resource
import shutil
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from worker.checkpoints.extents import TargetFile
from worker.engine.part_queue import ListedParts
from worker.engine.parts import cut_parts, part_bytes_for
from worker.engine.processes import Copy, CopyOptions, do_parts
from worker.engine.reading import SourceFiles
from worker.handlers import import_checkpoint
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ImportSpec

from .computed_tensors import computed_tensors, realistic_codes
from .legs import made_folder
from .random_checkpoint import Size

_FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


def write_fp8(folder: Path, size: Size) -> None:
    """A Llama whose linear layers are random e4m3 codes, with DeepSeek-V3's scales."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(size.config | {"quantization_config": _FP8}))
    chance = np.random.default_rng(0)
    pattern = realistic_codes(2**21).tobytes()
    header: dict[str, Any] = {}
    pieces: list[bytes | int] = []
    end = 0

    def add(name: str, dtype: str, shape: tuple[int, ...], data: bytes | int) -> None:
        nonlocal end
        length = data if isinstance(data, int) else len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + length]}
        pieces.append(data)
        end += length

    for name, shape in size.tensors():
        if "proj" in name:
            blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
            add(name, "F8_E4M3", shape, shape[0] * shape[1])
            add(f"{name}_scale_inv", "F32", blocks, (chance.random(blocks, dtype=np.float32) * 1e-3).tobytes())
        else:
            add(name, "BF16", shape, bytes(2 * int(np.prod(shape))))
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in pieces:
            if isinstance(data, int):
                for start in range(0, data, len(pattern)):
                    file.write(pattern[: min(len(pattern), data - start)])
            else:
                file.write(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one run took: seconds until all was synced, until the first bytes were made (a GPU is set up before)."""

    seconds: float
    cpu_seconds: float
    first: float = 0.0
    memory: int = 0
    """Peak bytes of one process that are no file's: anonymous ones, and shared ones, as page-locked memory may be."""
    inherited: int = 0
    """Of them, what this process held when it forked."""


def copy_phase(files: tuple[TargetFile, ...], out: Path, options: CopyOptions) -> Taken:
    """The copy phase of a job."""
    shutil.rmtree(out, ignore_errors=True)
    for file in files:
        path = out / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as made:
            made.truncate(file.size)
    os.sync()
    parts = cut_parts(files, part_bytes_for(sum(file.size for file in files)))
    queue = ListedParts(range(len(parts)))
    heard: list[float] = []
    started, cpu = time.monotonic(), _cpu_of_children()

    def report(done: int) -> None:
        if done and not heard:
            heard.append(time.monotonic() - started)

    with _Peak() as peak:
        do_parts(parts, queue, Copy(out), options, report)
    seconds = time.monotonic() - started
    return Taken(
        seconds=seconds,
        cpu_seconds=_cpu_of_children() - cpu,
        first=heard[0],
        memory=peak.bytes,
        inherited=peak.inherited,
    )


def plain_copy(source: Path, target: Path) -> Taken:
    """`cp -r`, synced."""
    os.sync()
    started, cpu = time.monotonic(), _cpu_of_children()
    # A child of this process: its CPU time is counted as that of the copy processes is.
    if os.spawnlp(os.P_WAIT, "cp", "cp", "-r", str(source), str(target)):
        raise RuntimeError(f"cp -r {source} {target} failed")
    for path in filter(Path.is_file, target.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    taken = Taken(seconds=time.monotonic() - started, cpu_seconds=_cpu_of_children() - cpu)
    shutil.rmtree(target)
    return taken


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _Peak:
    """Looks at this process's children many times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self.inherited = unfiled_bytes(os.getpid())
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Peak":
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for child in psutil.Process().children():
                self.bytes = max(self.bytes, unfiled_bytes(child.pid))


def unfiled_bytes(pid: int) -> int:
    """What a process holds beyond files, which the kernel can drop."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def compare(name: str, files: tuple[TargetFile, ...], folder: Path, legs: dict[str, CopyOptions], rounds: int) -> None:
    """Each leg and `cp` of what it wrote, in turn; a line for each."""
    size = sum(file.size for file in files)
    taken: dict[str, list[Taken]] = {leg: [] for leg in (*legs, "cp of the output")}
    for _ in range(rounds):
        for leg, options in legs.items():
            taken[leg].append(copy_phase(files, folder / "out", options))
        taken["cp of the output"].append(plain_copy(folder / "out", folder / "copied"))
    shutil.rmtree(folder / "out")
    print(f"{name}, {size / 1e9:.2f} GB of output", flush=True)
    for leg, runs in taken.items():
        print(f"  {leg:20} {_line(size, runs)}", flush=True)


def _line(size: int, runs: list[Taken]) -> str:
    seconds, least = median(run.seconds for run in runs), min(run.seconds for run in runs)
    cpu = min(run.cpu_seconds for run in runs)
    first, largest = median(run.first for run in runs), max(runs, key=lambda run: run.memory)
    return (
        f"{seconds:6.2f} s (least {least:.2f}) {size / seconds / 1e9:5.2f} GB/s;  CPU {cpu:5.2f} s"
        f" {size / max(cpu, 0.01) / 1e9:5.2f} GB/s"
        + (
            f";  first bytes after {first:.1f} s;  a process holds {largest.memory >> 20} MiB,"
            f" {largest.inherited >> 20} from its parent"
            if largest.memory
            else ""
        )
    )


def on_gpu(name: str, file: TargetFile, rounds: int) -> None:
    """Read, computed on the GPU and back in this process's memory; nothing is written."""
    from worker.engine.computed import GPU_PIECE_BYTES
    from worker.engine.gpu_arithmetic import on_gpu

    seconds: list[float] = []
    for _ in range(rounds + 1):
        started = time.monotonic()
        sources = SourceFiles(on_gpu, GPU_PIECE_BYTES)
        for span in file.spans:
            for extent in span.extents:
                for _ in sources.computed(extent):  # pyright: ignore[reportArgumentType]  # computed ones alone
                    pass
        sources.close()
        seconds.append(time.monotonic() - started)
    least = min(seconds[1:])
    print(
        f"  {name:26} {file.size / least / 1e9:6.2f} GB/s of output;"
        f"  this process {unfiled_bytes(os.getpid()) >> 20} MiB",
        flush=True,
    )


def main() -> None:
    """Make the sources; run every leg some times, in turn with `cp`; print medians."""
    parser = argparse.ArgumentParser(prog="dequantize", description=__doc__)
    parser.add_argument("--folder", type=made_folder)
    parser.add_argument("--layers", type=int, default=16, help="of the Llama that is imported")
    parser.add_argument("--tensor-bytes", type=int, default=2**29, help="of each single tensor's output")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-dequantize-", dir=options.folder) as temporary:
        folder = Path(temporary).absolute()
        write_fp8(folder / "hf", Size(layers=options.layers, vocabulary=1024))
        spec = ImportSpec(source=str(folder / "hf"), target=str(folder / "none"))
        legs = {f"{count} processes": CopyOptions(processes=count) for count in options.processes}
        if options.gpu:
            legs |= {f"GPU, {count} processes": CopyOptions(processes=count, gpu=True) for count in options.processes}
        compare("fp8 import", import_checkpoint.prepare(spec, LocalPaths()).files, folder, legs, options.rounds)
        shutil.rmtree(folder / "hf")
        one = {"1 process": CopyOptions()}
        for tensor in computed_tensors():
            file = tensor.write(folder, options.tensor_bytes)
            compare(tensor.name, (file,), folder, one, options.rounds)
        if options.gpu:
            print("read, and computed on the GPU")
            for tensor in computed_tensors():
                on_gpu(tensor.name, tensor.write(folder, options.tensor_bytes), options.rounds)


if __name__ == "__main__":
    main()
