"""Export of what a training run at TP=4, PP=2 leaves, optimizer and all, against `cp` of the model's bytes.

`python -m tests.benchmarks.trained_export` from the repository's root. Prints; asserts nothing. The checkpoint is made
here, cut as Megatron cuts it (a gated layer in two pieces a rank, column cuts of row-parallel layers), its optimizer
state as holes: an export that read them would show.
"""

import argparse
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from worker.checkpoints.torch_archive import object_archive, tensor_envelope
from worker.jobs.spec import ExportSpec, ImportSpec

from .legs import Bench, plain_copy, worker_command
from .random_checkpoint import Size, make

TP, PP = 4, 2
_PATTERN = os.urandom(8 * 2**20)
_COLUMN_PARALLEL = ("linear_qkv.weight", "linear_fc1.weight", "word_embeddings.weight", "output_layer.weight")
_ROW_PARALLEL = ("linear_proj.weight", "linear_fc2.weight")

Piece = tuple[int, str, tuple[int, ...], tuple[int, ...]]
"""(rank, key, offsets, sizes)."""


def pieces(shapes: dict[str, tuple[int, ...]]) -> Iterator[Piece]:
    """What each rank saves of each tensor."""
    for key, shape in shapes.items():
        stacked = key.startswith("decoder.layers.")
        inner = shape[1:] if stacked else shape
        layers = range(shape[0]) if stacked else [None]
        for layer, (tp, offsets, sizes) in product(layers, list(_cuts(key, inner))):
            stage = (
                (layer * PP // shape[0]) if layer is not None else PP - 1 if "output" in key or "final" in key else 0
            )
            lead = () if layer is None else (layer,)
            yield stage * TP + tp, key, (*lead, *offsets), (*(1 for _ in lead), *sizes)


def _cuts(key: str, shape: tuple[int, ...]) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    if key.endswith("linear_fc1.weight"):
        rows = shape[0] // (2 * TP)
        for half, rank in product(range(2), range(TP)):
            yield rank, (half * shape[0] // 2 + rank * rows, 0), (rows, shape[1])
    elif key.endswith(_COLUMN_PARALLEL):
        for rank in range(TP):
            yield rank, (rank * shape[0] // TP, 0), (shape[0] // TP, shape[1])
    elif key.endswith(_ROW_PARALLEL):
        for rank in range(TP):
            yield rank, (0, rank * shape[1] // TP), (shape[0], shape[1] // TP)
    else:
        yield 0, tuple(0 for _ in shape), shape


def write_trained(folder: Path, shapes: dict[str, tuple[int, ...]], objects: list[str]) -> None:
    """An iteration folder of eight ranks."""
    folder.mkdir(parents=True)
    states: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    files = {rank: (folder / f"__{rank}_0.distcp").open("wb") for rank in range(TP * PP)}
    described = {
        "": (torch.bfloat16, "BF16", 2),
        "optimizer.state.exp_avg.": (torch.float32, "F32", 4),
        "optimizer.state.exp_avg_sq.": (torch.float32, "F32", 4),
    }
    for prefix, (dtype, name, item_bytes) in described.items():
        for rank, key, offsets, sizes in pieces(shapes):
            full = prefix + key
            entry = states.setdefault(
                full, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shapes[key]), [])
            )
            entry.chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            nbytes = int(torch.Size(sizes).numel()) * item_bytes
            before, after = tensor_envelope(sizes, name, nbytes)
            file = files[rank]
            start = file.tell()
            file.write(before)
            if prefix:
                file.seek(nbytes, os.SEEK_CUR)
            else:
                for at in range(0, nbytes, len(_PATTERN)):
                    file.write(_PATTERN[: min(len(_PATTERN), nbytes - at)])
            file.write(after)
            length = len(before) + nbytes + len(after)
            index = MetadataIndex(full, torch.Size(offsets))
            storage[index] = _StorageInfo(f"__{rank}_0.distcp", start, length)
    for name in objects:
        data = object_archive([None])
        states[name] = BytesStorageMetadata()
        storage[MetadataIndex(name)] = _StorageInfo("__0_0.distcp", files[0].tell(), len(data))
        files[0].write(data)
    for file in files.values():
        file.close()
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(states, storage_data=storage)))
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


def main() -> None:
    """Make the checkpoint, run the rounds, print the table."""
    parser = argparse.ArgumentParser(prog="trained_export", description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-trained-") as temporary:
        bench = Bench(folder=(options.folder or Path(temporary)).absolute())
        make(bench.hf, Size(layers=options.layers))
        worker_command(ImportSpec(source=str(bench.hf), target=str(bench.mcore)), 2)
        index: Any = pickle.loads((bench.mcore / "release" / ".metadata").read_bytes())
        tensors = {
            name: tuple(entry.size)
            for name, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        shutil.rmtree(bench.mcore / "release")
        write_trained(bench.mcore / "iter_0000010", tensors, [])
        (bench.mcore / "latest_checkpointed_iteration.txt").write_text("10")
        size = sum(path.stat().st_size for path in bench.mcore.rglob("*.distcp"))
        model = sum(path.stat().st_size for path in bench.hf.glob("*.safetensors"))
        print(f"model {model / 1e9:.2f} GB, checkpoint with optimizer {size / 1e9:.2f} GB, TP={TP} PP={PP}")
        spec = ExportSpec(source=str(bench.mcore), target=str(bench.out))
        seconds: dict[str, list[float]] = {"cp": [], "export, 1 process": [], "export, 2 processes": []}
        for number in range(options.rounds):
            bench.clear()
            seconds["cp"].append(plain_copy(bench).seconds["copy"])
            for count, leg in ((1, "export, 1 process"), (2, "export, 2 processes")):
                bench.clear()
                seconds[leg].append(worker_command(spec, count).seconds["copy"])
            print(f"round {number + 1}: " + ", ".join(f"{leg} {runs[-1]:.2f} s" for leg, runs in seconds.items()))
        bench.clear()
        base = median(seconds["cp"])
        for leg, runs in seconds.items():
            print(f"{leg:22} {median(runs):6.2f} s  {median(runs) / base:.2f}x")


if __name__ == "__main__":
    main()
