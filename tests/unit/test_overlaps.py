"""Boxes that a rank asks for, out of chunks that another parallelism left: each element once, from where it lies."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from worker.checkpoints.extents import StoredTensor
from worker.checkpoints.overlaps import overlaps
from worker.checkpoints.tiling import Tiling


@dataclass(frozen=True)
class _Box:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


SHAPE = (2, 4, 6, 8)
"""[layers, experts, rows, columns]"""
CHUNKS = {
    "one expert each": (1, 1, 6, 8),
    "halves of rows": (1, 1, 3, 8),
    "cut by columns": (1, 1, 6, 2),
    "two layers of two experts": (2, 2, 6, 8),
    "whole": SHAPE,
}


def _grid(sizes: tuple[int, ...]) -> list[_Box]:
    starts = (range(0, extent, size) for extent, size in zip(SHAPE, sizes, strict=True))
    return [_Box(offsets, sizes) for offsets in product(*starts)]


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("asked", [(1, 1, 6, 8), (1, 1, 3, 8), (1, 1, 2, 8), (1, 1, 6, 4)], ids=str)
def test_every_element_of_a_box_comes_once_from_its_chunk(chunk: tuple[int, ...], asked: tuple[int, ...]) -> None:
    whole = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    boxes = _grid(chunk)
    tensor = StoredTensor(dtype="I64", shape=SHAPE, item_bytes=8)
    tiling = Tiling(
        name="stack", origin=Path(), tensor=tensor, boxes=boxes, locate=lambda box: (Path(), boxes.index(box))
    )

    for box in _grid(asked):
        found = np.full(asked, -1)
        parts = list(overlaps(tiling, box.offsets, box.sizes, 2))
        for part in parts:
            stored = whole[_slices(boxes[part.offset])]
            assert stored.shape == part.chunk
            assert (found[part.target] == -1).all()
            found[part.target] = stored[part.inside]

        assert (found == whole[_slices(box)]).all()
        assert sum(part.numel for part in parts) == found.size


def test_a_box_that_reaches_beyond_the_tensor_gets_what_there_is() -> None:
    tensor = StoredTensor(dtype="I64", shape=(5, 2), item_bytes=8)
    tiling = Tiling(
        name="rows", origin=Path(), tensor=tensor, boxes=[_Box((0, 0), (5, 2))], locate=lambda _: (Path("file"), 64)
    )

    [part] = overlaps(tiling, (4, 0), (4, 2), 0)

    assert (part.inside, part.target) == ((slice(4, 5), slice(0, 2)), (slice(0, 1), slice(0, 2)))
    assert (part.path, part.offset, part.numel) == (Path("file"), 64, 2)
    assert list(overlaps(tiling, (8, 0), (4, 2), 0)) == []


def _slices(box: _Box) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(box.offsets, box.sizes, strict=True))
