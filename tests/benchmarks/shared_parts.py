"""One job done by one worker and by two that share its parts: seconds of the copy, and the ratio.

`python -m tests.benchmarks.shared_parts` from the repository's root. Prints; asserts nothing. The default folder is in
memory, so that the disk is not the limit; each worker has one copy process.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from statistics import median

from .legs import Bench, made_folder
from .random_checkpoint import Size, make
from .warm_worker import warm_worker


def main() -> None:
    """Make the checkpoint, time both services in turn."""
    parser = argparse.ArgumentParser(prog="shared_parts", description=__doc__)
    parser.add_argument("--folder", type=made_folder, default=Path("/dev/shm"))
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-shared-", dir=options.folder) as temporary:
        bench = Bench(folder=Path(temporary))
        size = Size(layers=options.layers)
        make(bench.hf, size)
        print(f"checkpoint: {size.nbytes / 1e9:.2f} GB in {bench.folder}")
        medians: dict[int, float] = {}
        for workers in (1, options.workers):
            seconds: list[float] = []
            bench.clear()
            with warm_worker(bench, 1, slots=workers, look_seconds=0.25) as service:
                for _ in range(options.rounds):
                    bench.clear()
                    seconds.append(service.run(bench.specs()["import"]).seconds["copy"])
            medians[workers] = median(seconds)
            print(f"{workers} worker(s): {', '.join(f'{value:.2f}' for value in seconds)} s", flush=True)
        bench.clear()
        shutil.rmtree(bench.hf)
    print(f"ratio {medians[1] / medians[options.workers]:.2f}")


if __name__ == "__main__":
    main()
