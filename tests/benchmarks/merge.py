"""A rank-32 adapter of all linear layers merged into a 3 GB base: Ferry, PEFT and `cp` in one run.

`python -m tests.benchmarks.merge` from the repository's root. Prints; asserts nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .legs import made_folder
from .measured import measure
from .random_checkpoint import Size, make

_RANK = 32
_PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
model.merge_and_unload().save_pretrained(out)
"""
_MEBIBYTE = 2**20


def main() -> None:
    """Make base and adapter, run the rounds, print medians, ratios and how many elements differ."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="ferry-benchmark-", dir=options.folder) as temporary:
        folder = Path(temporary)
        size = Size(layers=options.layers)
        make_base(folder / "base", size)
        make_adapter(folder / "adapter", folder / "base", size, dora=options.dora)
        print(
            f"{os.cpu_count()} cores, base of {size.nbytes / 1e9:.2f} GB, rank {_RANK} on all linear layers", flush=True
        )
        _rounds(folder, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="merge", description=__doc__)
    parser.add_argument("--folder", type=made_folder, help="a folder on the file system to be measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="copy processes to try")
    parser.add_argument("--layers", type=int, default=16, help="16 are 1.5 billion parameters")
    parser.add_argument("--rounding", nargs="+", default=["exact", "peft"])
    parser.add_argument("--dora", action="store_true")
    return parser.parse_args()


def make_base(folder: Path, size: Size) -> None:
    """Its bytes as weights are, not any: a NaN would be slow, and nobody's."""
    pattern = _bf16(np.random.default_rng(1).standard_normal(4 * 2**20, dtype=np.float32) * np.float32(0.02))
    make(folder, size, pattern)


def make_adapter(folder: Path, base: Path, size: Size, *, dora: bool) -> None:
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in size.tensors():
        if "_proj" not in name:
            continue
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = 0.02 * torch.randn(_RANK, shape[1])
        tensors[f"{module}.lora_B.weight"] = 0.02 * torch.randn(shape[0], _RANK)
        if dora:
            tensors[f"{module}.lora_magnitude_vector"] = torch.rand(shape[0]) + 0.5
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 64, "target_modules": targets, "use_dora": dora}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))


def _bf16(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> bytes:
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _rounds(folder: Path, options: argparse.Namespace) -> None:
    taken: dict[str, list[tuple[float, float, int]]] = {}
    for _ in range(options.rounds):
        for name, command in _legs(folder, options).items():
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            started = time.monotonic()
            measured = measure(command)
            subprocess.run(["sync", "-f", str(folder)], check=True)
            seconds = time.monotonic() - started
            copied = _copy_seconds(measured.output)
            taken.setdefault(name, []).append((seconds, copied, max(measured.memory.values())))
            print(f"  {name:22} {seconds:6.2f} s{f', of it {copied:.2f} s copying' if copied else ''}", flush=True)
            if "rounding" in name or name == "peft":
                shutil.rmtree(folder / name, ignore_errors=True)
                out.rename(folder / name)
    base = median(seconds for seconds, _, _ in taken["cp"])
    print("\nmedians: the whole command, ratio to cp; copy phase; peak anonymous memory of one process")
    for name, runs in taken.items():
        seconds, copied = (median(run[place] for run in runs) for place in (0, 1))
        memory = max(run[2] for run in runs) / _MEBIBYTE
        print(f"  {name:22} {seconds:6.2f} s ({seconds / base:.2f}x), copy {copied:.2f} s, {memory:.0f} MiB")
    _compare(folder)


def _legs(folder: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    base, adapter, out = (str(folder / name) for name in ("base", "adapter", "out"))
    legs = {"cp": ["cp", "-r", base, out]}
    spec = {"kind": "merge", "source": base, "target": out, "adapters": [{"path": adapter}]}
    for count in options.processes:
        for rounding in options.rounding:
            text = json.dumps({**spec, "rounding": rounding})
            command = [sys.executable, "-m", "worker", "run", text, "--copy-processes", str(count)]
            legs[f"ferry, {count}, rounding {rounding}"] = command
    legs["peft"] = [sys.executable, "-c", _PEFT, base, adapter, out]
    return legs


def _copy_seconds(output: str) -> float:
    lines = [line for line in output.splitlines() if '"timings"' in line]
    return json.loads(lines[-1])["result"]["timings"]["copy_seconds"] if lines else 0.0


def _compare(folder: Path) -> None:
    for ours in sorted(folder.glob("ferry*")):
        differing, total = 0, 0
        theirs = _tensors(folder / "peft")
        for name, path in _tensors(ours).items():
            one, other = _read(path, name), _read(theirs[name], name)
            differing += int((one != other).sum())
            total += one.numel()
        print(f"  {ours.name}: {differing} of {total} elements differ from peft's")


def _tensors(folder: Path) -> dict[str, Path]:
    return {name: path for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118  # no mapping


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


if __name__ == "__main__":
    main()
