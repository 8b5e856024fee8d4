"""An fp8 checkpoint imported: gigabytes of output a second, on one core, on several, and on a GPU where there is one.

`python -m tests.benchmarks.dequantize [--folder DIR] [--gpu]` from the repository's root. Prints; asserts nothing.
"""

import argparse
import json
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.quantized_folders import FP8
from worker.checkpoints.operations import BlockFp8, ToBlockFp8
from worker.engine.arithmetic import compute
from worker.engine.computed import GPU_PIECE_BYTES, PIECE_BYTES
from worker.engine.part_queue import ListedParts
from worker.engine.parts import spread
from worker.engine.processes import Copy, CopyOptions, do_parts
from worker.handlers import import_checkpoint
from worker.handlers.conversion import Conversion
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import ImportSpec

from .measured import measure
from .random_checkpoint import Size


def write_fp8(folder: Path, size: Size) -> None:
    """A Llama whose linear layers are random e4m3 codes, with DeepSeek-V3's scales."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(size.config | {"quantization_config": FP8}))
    chance = np.random.default_rng(0)
    pattern = realistic_codes(2**24).tobytes()
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


def realistic_codes(count: int) -> np.ndarray:
    """e4m3 codes of normally distributed weights whose largest is 448, as quantizing makes them."""
    values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    codes = compute(ToBlockFp8(4096, 128, 128, "F32"), (values.view(np.uint8),), 0, count // 4096)
    return np.asarray(codes).reshape(-1)


def arithmetic_alone(rows: int = 2048, columns: int = 8192) -> float:
    """Gigabytes of bf16 a second on one core, from memory to memory."""
    codes = realistic_codes(rows * columns)
    scales = np.full((rows // 128) * (columns // 128), 1e-3, np.float32).view(np.uint8)
    operation = BlockFp8(columns, 128, 128, "F32", "BF16")
    step = max(1, PIECE_BYTES // (2 * columns))
    rates: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        for first in range(0, rows, step):
            group = first // 128 * (columns // 128) * 4
            upto = -(-(first + step) // 128) * (columns // 128) * 4
            compute(operation, (codes[first * columns : (first + step) * columns], scales[group:upto]), first, step)
        rates.append(rows * columns * 2 / (time.perf_counter() - started) / 1e9)
    return median(rates)


def copy_seconds(conversion: Conversion, out: Path, options: CopyOptions) -> float:
    """The copy phase, synced."""
    shutil.rmtree(out, ignore_errors=True)
    for file in conversion.files:
        path = out / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as made:
            made.truncate(file.size)
    os.sync()
    started = time.monotonic()
    queue = ListedParts(spread(conversion.parts, range(len(conversion.parts))))
    do_parts(conversion.parts, queue, Copy(out), options, lambda _: None)
    return time.monotonic() - started


def main() -> None:
    """Make the checkpoint, run each leg three times, print medians."""
    parser = argparse.ArgumentParser(prog="dequantize", description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"arithmetic alone, one core: {arithmetic_alone():.2f} GB/s of bf16 in pieces of {PIECE_BYTES >> 20} MiB")
    with tempfile.TemporaryDirectory(prefix="ferry-dequantize-") as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        if not (folder / "hf").exists():
            write_fp8(folder / "hf", Size(layers=options.layers, vocabulary=1024))
        spec = ImportSpec(source=str(folder / "hf"), target=str(folder / "none"))
        conversion = import_checkpoint.prepare(spec, LocalPaths())
        print(f"output {conversion.bytes / 1e9:.2f} GB; GPU pieces of {GPU_PIECE_BYTES >> 20} MiB")
        legs = {f"{count} processes": CopyOptions(processes=count) for count in options.processes}
        if options.gpu:
            legs |= {f"GPU, {count} processes": CopyOptions(processes=count, gpu=True) for count in options.processes}
        for name, leg in legs.items():
            seconds = [copy_seconds(conversion, folder / "out", leg) for _ in range(options.rounds)]
            shutil.rmtree(folder / "out")
            rate = conversion.bytes / median(seconds) / 1e9
            print(
                f"{name:20} {median(seconds):6.2f} s  {rate:5.2f} GB/s of output (min {min(seconds):.2f} s)", flush=True
            )
        taken = measure(["cp", "-r", str(folder / "hf"), str(folder / "out")])
        print(f"cp of the source     {taken.seconds:6.2f} s")
        shutil.rmtree(folder / "out")


if __name__ == "__main__":
    main()
