"""A rank-32 adapter of all linear layers merged on a GPU, against `cp` of the same bytes and the same by CPU alone.

`python -m tests.benchmarks.merge_gpu [--folder DIR]` from the repository's root, on a host with a GPU. Prints; asserts
nothing. The import of torch and the start of CUDA count.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from worker.engine.processes import CopyOptions
from worker.handlers import merge
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import AdapterUse, MergeSpec

from .dequantize import copy_phase
from .legs import made_folder
from .merge import make_adapter, make_base
from .random_checkpoint import Size


def main() -> None:
    """Rounds of every leg, interleaved; medians."""
    parser = argparse.ArgumentParser(prog="merge_gpu", description=__doc__)
    parser.add_argument("--folder", type=made_folder)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-merge-", dir=options.folder) as temporary:
        _run(Path(temporary), options)


def _run(folder: Path, options: argparse.Namespace) -> None:
    size = Size(layers=options.layers)
    make_base(folder / "base", size)
    make_adapter(folder / "adapter", folder / "base", size, dora=False)
    adapters = (AdapterUse(path=str(folder / "adapter")),)
    spec = MergeSpec(source=str(folder / "base"), target=str(folder / "none"), adapters=adapters)
    conversion = merge.prepare(spec, LocalPaths())
    print(f"{conversion.bytes / 1e9:.2f} GB", flush=True)
    taken: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        taken.setdefault("cp", []).append(_copied(folder))
        for count in options.processes:
            for name, gpu in (("GPU", True), ("CPU", False)):
                leg = CopyOptions(processes=count, gpu=gpu)
                taken.setdefault(f"{name}, {count}", []).append(
                    copy_phase(conversion.files, folder / "out", leg).seconds
                )
                shutil.rmtree(folder / "out")
    base = median(taken["cp"])
    for name, seconds in taken.items():
        print(f"  {name:8} {median(seconds):6.2f} s ({median(seconds) / base:.2f}x cp; min {min(seconds):.2f} s)")


def _copied(folder: Path) -> float:
    started = time.monotonic()
    shutil.copytree(folder / "base", folder / "copy")
    seconds = time.monotonic() - started
    shutil.rmtree(folder / "copy")
    return seconds


if __name__ == "__main__":
    main()
