"""A real trainer started from what `ferry setup` leaves: does it begin with the base's weights, learn, and come back?

`python -m tests.benchmarks.train_start` from the repository's root, on a host with GPUs or, rehearsing, without:
Megatron-LM's own program by the setup's argument file, its losses against HF's, its checkpoint exported, and each
rank's memory beside the estimate. Exits with 1 where something does not hold.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from . import checks, memory_table
from .models import hf_losses, make, make_batch
from .settings import SETTINGS, Setting
from .start import STEPS, Start

_LENGTHS = {"tiny": 64, "1b": 2048}


def main() -> None:
    """Make the models, set up, start, tell."""
    given = _parser().parse_args()
    gpus = torch.cuda.device_count() if given.device == "cuda" else 2
    wanted = [setting for setting in _wanted(given) if setting.world_size <= gpus]
    compiles = given.device == "cuda" and any(map(shutil.which, ("gcc", "cc", "clang")))
    print(f"torch {torch.__version__}, {given.device}, {len(wanted)} settings; torch.compile: {compiles}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ferry-train-start-") as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        starts = [_start(setting, folder, given, compiles) for setting in wanted]
        with ThreadPoolExecutor(given.jobs) as pool:
            plans = [pool.submit(start.set_up) for start in starts]
            tried = [
                _tried(start, plan, saves=not given.memory_only) for start, plan in zip(starts, plans, strict=True)
            ]
        failed = [start.setting.name for start, holds in zip(starts, tried, strict=True) if not holds]
    print(f"failed: {', '.join(failed)}" if failed else "all hold")
    raise SystemExit(1 if failed else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train_start", description=__doc__)
    parser.add_argument("--folder", type=Path, help="kept, and used again; default: a temporary one")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=tuple(_LENGTHS), default="tiny")
    parser.add_argument("--length", type=int, help="tokens of a sample")
    parser.add_argument("--jobs", type=int, default=2, help="setups at once")
    parser.add_argument("--memory-only", action="store_true", help="nothing is saved, exported or started again")
    parser.add_argument("--settings", nargs="+", choices=[one.name for one in SETTINGS], help="default: all that fit")
    parser.add_argument("--tp", type=int, help="a setting of its own, with these sizes")
    parser.add_argument("--pp", type=int)
    return parser


def _wanted(given: argparse.Namespace) -> Iterator[Setting]:
    if given.tp or given.pp:
        yield Setting(name=f"tp{given.tp or 1}-pp{given.pp or 1}", tp=given.tp or 1, pp=given.pp or 1)
        return
    yield from (setting for setting in SETTINGS if not given.settings or setting.name in given.settings)


def _start(setting: Setting, folder: Path, given: argparse.Namespace, compiles: bool) -> Start:
    hf = folder / f"hf-{setting.family}-{given.size}"
    make(hf, setting.family, given.size, given.device)
    samples = setting.micro_batches * setting.replicas
    batch = make_batch(hf, samples, given.length or _LENGTHS[given.size], given.device)
    where = folder / setting.name
    shutil.rmtree(where, ignore_errors=True)
    return Start(setting=setting, hf=hf, batch=batch, folder=where, device=given.device, compiles=compiles)


def _tried(start: Start, planned: Future[dict[str, Any]], *, saves: bool) -> bool:
    """Whether all holds of it; what was found is printed."""
    setting, began = start.setting, time.monotonic()
    print(f"\n{setting.name}: {setting}", flush=True)
    try:
        plan, found = planned.result(), list[checks.Check]()
        trained = start.train(saves=saves)
        found += checks.of_first_start(start, trained, hf_losses(start.hf, start.batch, start.device))
        if setting.adapters:
            found += checks.of_adapters(trained)
        if saves:
            found += checks.of_export(start, trained, start.export())
        if saves and setting.restarts:
            found += checks.of_restart(start, trained, start.train(STEPS + 1, saves=True))
    except (RuntimeError, OSError) as error:
        print(f"  FAILED {error}", flush=True)
        return False
    print(*found, sep="\n")
    for rank in trained.ranks:
        print(*memory_table.rows(rank, plan), sep="\n")
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    start.clear()
    return all(check.holds for check in found)


main()
