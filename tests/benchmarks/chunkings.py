"""Chunks of stacked experts, by what torch's planner and reader make of them: comparisons, seconds, bytes read twice.

`python -m tests.benchmarks.chunkings [--layers 24]` from the repository's root. Prints; asserts nothing. A rank asks
for each expert's gate, up and down apart, as Megatron does; the reader loads a stored chunk whole for each part of it.
Seconds grow with the square of the layers; bytes as a ratio do not depend on them.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from tests.large_stand_ins import QWEN3_235B

EXPERTS, WIDTH, HIDDEN = (QWEN3_235B[name] for name in ("num_experts", "moe_intermediate_size", "hidden_size"))
CHUNKS = {
    "1 layer x 1 expert (as written)": (1, 1, 1, 1),
    "gate and up apart (as saved at ETP1)": (1, 1, 2, 1),
    "gate and up apart, cut in 2 (as saved at ETP2)": (1, 1, 4, 2),
    "1 layer x 2 experts": (1, 2, 1, 1),
    "1 layer x 4 experts": (1, 4, 1, 1),
    "1 layer x 16 experts": (1, 16, 1, 1),
    "2 layers x 1 expert": (2, 1, 1, 1),
}
"""Layers and experts of a chunk, and into how many pieces rows of fc1 and columns of fc2 are cut."""
RANKS = ((1, 1), (8, 1), (64, 1), (128, 1), (8, 2), (8, 8))
"""(EP, ETP)"""


def grid(
    shape: Sequence[int], sizes: Sequence[int], axes: dict[int, Sequence[int]] | None = None
) -> list[ChunkStorageMetadata]:
    """Chunks of `sizes` that tile `shape`; on the axes that are named, only those that begin there."""
    starts = [
        (axes or {}).get(axis, range(0, extent, size))
        for axis, (extent, size) in enumerate(zip(shape, sizes, strict=True))
    ]
    return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets in product(*starts)]


def plan(layers: int, chunk: tuple[int, int, int, int], ep: int, etp: int) -> tuple[int, float, float]:
    """Comparisons, CPU seconds, and bytes read for each byte wanted."""
    rows = WIDTH // etp
    local = {1: range(EXPERTS // ep)}
    fc1, fc2 = (layers, EXPERTS, 2 * WIDTH, HIDDEN), (layers, EXPERTS, HIDDEN, WIDTH)
    tensors = (
        (fc1, (*chunk[:2], 2 * WIDTH // chunk[2], HIDDEN), (1, 1, rows, HIDDEN), {**local, 2: (0, WIDTH)}),
        (fc2, (*chunk[:2], HIDDEN, WIDTH // chunk[3]), (1, 1, HIDDEN, rows), {**local, 3: (0,)}),
    )
    compared, seconds, read, wanted = 0, 0.0, 0, 0
    for shape, stored, asked, axes in tensors:
        chunks, boxes = grid(shape, stored), grid(shape, asked, axes)
        metadata = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size(shape), chunks)
        started = time.process_time()
        items = create_read_items_for_chunk_list("experts", metadata, boxes)
        seconds += time.process_time() - started
        compared += len(chunks) * len(boxes)
        read += len(items) * prod(stored)
        wanted += len(boxes) * prod(asked)
    return compared, seconds, read / wanted


def main() -> None:
    """A line a chunking: planning at EP8, then what is read at every size."""
    parser = argparse.ArgumentParser(prog="chunkings", description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    layers: int = parser.parse_args().layers
    for name, chunk in CHUNKS.items():
        compared, seconds, _ = plan(layers, chunk, 8, 1)
        whole = seconds * (QWEN3_235B["num_hidden_layers"] / layers) ** 2
        ratios = ", ".join(f"EP{ep} ETP{etp} {plan(2, chunk, ep, etp)[2]:.2f}" for ep, etp in RANKS)
        print(
            f"{name:48} EP8: {compared / 1e6:.1f}M comparisons, {seconds:.2f} s (94 layers: {whole:.1f} s)", flush=True
        )
        print(f"{'':48} bytes read for each wanted: {ratios}", flush=True)


if __name__ == "__main__":
    main()
