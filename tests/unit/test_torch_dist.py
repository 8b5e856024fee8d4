"""torch_dist folders: what torch's own DCP saved is read to the byte, whatever its chunks; broken ones are refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from worker.checkpoints.extents import Extent, Literal, Run, Weave, Zeros
from worker.checkpoints.iterations import iteration_folder
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.jobs.errors import BadInputError

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""(offsets, sizes) of a chunk."""


class ChunkPlanner(dcp.DefaultSavePlanner):
    """Saves one tensor in the given boxes, as ranks of a parallel trainer would."""

    def __init__(self, tensor: torch.Tensor, boxes: list[Box]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.tensor, self.boxes = tensor, boxes

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(
            [
                WriteItem(
                    MetadataIndex("w", torch.Size(offsets)),
                    WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                        TensorProperties(dtype=self.tensor.dtype),
                        self.tensor.shape,
                    ),
                )
                for offsets, sizes in self.boxes
            ]
        )
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        offset = write_item.index.offset
        sizes = dict(self.boxes)[tuple(offset or ())]
        return self.tensor[tuple(slice(o, o + s) for o, s in zip(offset or (), sizes, strict=True))].contiguous()


def saved(folder: Path, tensor: torch.Tensor, boxes: list[Box]) -> TorchDistFolder:
    writer = dcp.FileSystemWriter(folder, thread_count=2)
    dcp.save({}, storage_writer=writer, planner=ChunkPlanner(tensor, boxes), no_dist=True)
    mark(folder)
    return TorchDistFolder.open(folder)


def mark(folder: Path) -> None:
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


def read(extents: tuple[Extent, ...]) -> bytes:
    out = b""
    for extent in extents:
        match extent:
            case Run(path, offset, length):
                out += path.read_bytes()[offset : offset + length]
            case Weave(rows, strands):
                for row in range(rows):
                    for strand in strands:
                        start = strand.offset + row * strand.row_bytes
                        out += strand.path.read_bytes()[start : start + strand.row_bytes]
            case Zeros() | Literal():
                raise AssertionError(extent)
    return out


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


LAYOUTS: dict[str, tuple[tuple[int, ...], list[Box]]] = {
    "whole": ((6, 4), [((0, 0), (6, 4))]),
    "rows cut": ((6, 4), [((0, 0), (2, 4)), ((2, 0), (4, 4))]),
    "columns cut": ((6, 4), [((0, 0), (6, 1)), ((0, 1), (6, 3))]),
    "rows and columns cut": ((6, 4), [((0, 0), (4, 2)), ((0, 2), (4, 2)), ((4, 0), (2, 3)), ((4, 3), (2, 1))]),
    "vector": ((7,), [((0,), (3,)), ((3,), (4,))]),
}
STACKS: dict[str, tuple[tuple[int, ...], list[Box]]] = {
    "a chunk a layer": ((2, 6, 4), [((0, 0, 0), (1, 6, 4)), ((1, 0, 0), (1, 6, 4))]),
    "one chunk for all layers": ((2, 6, 4), [((0, 0, 0), (2, 6, 4))]),
    "layers together, columns cut": ((2, 6, 4), [((0, 0, 0), (2, 6, 3)), ((0, 0, 3), (2, 6, 1))]),
    "stack of vectors": ((2, 7), [((0, 0), (1, 7)), ((1, 0), (1, 3)), ((1, 3), (1, 4))]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("start", "rows"), [(0, 6), (1, 4), (3, 2)])
def test_any_rows_are_found_however_the_tensor_is_cut(tmp_path: Path, layout: str, start: int, rows: int) -> None:
    shape, boxes = LAYOUTS[layout]
    tensor = torch.randn(shape).bfloat16()

    folder = saved(tmp_path, tensor, boxes)

    assert folder.tensors["w"].shape == shape
    assert read(folder.rows("w", (), start, rows)) == raw(tensor[start : start + rows])


@pytest.mark.parametrize("layout", STACKS)
@pytest.mark.parametrize("index", [0, 1])
def test_any_rows_of_a_slice_are_found_however_the_stack_is_cut(tmp_path: Path, layout: str, index: int) -> None:
    shape, boxes = STACKS[layout]
    tensor = torch.randn(shape)

    folder = saved(tmp_path, tensor, boxes)

    assert read(folder.rows("w", (index,), 2, 4)) == raw(tensor[index, 2:6])


def test_chunks_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, torch.randn(6, 4), [((0, 0), (6, 1)), ((0, 2), (6, 2))])

    with pytest.raises(BadInputError, match="do not tile"):
        folder.rows("w", (), 0, 6)


def test_rows_without_any_chunk_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, torch.randn(6, 4), [((0, 0), (2, 4))])

    with pytest.raises(BadInputError, match="do not tile"):
        folder.rows("w", (), 0, 6)


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, torch.randn(6, 4), [((0, 0), (6, 4))])
    next(tmp_path.glob("*.distcp")).unlink()

    with pytest.raises(BadInputError, match="distcp") as refused:
        folder.rows("w", (), 0, 6)

    assert refused.value.info.code == "missing_file"


def test_an_index_without_its_format_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, torch.randn(2, 2), [((0, 0), (2, 2))])
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "zarr"}')

    with pytest.raises(BadInputError, match="zarr"):
        TorchDistFolder.open(tmp_path)


@pytest.mark.parametrize("index", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps([1, 2])])
def test_a_broken_index_is_refused(tmp_path: Path, index: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(index)
    mark(tmp_path)

    with pytest.raises(BadInputError) as refused:
        TorchDistFolder.open(tmp_path)

    assert refused.value.info.code == "bad_checkpoint"


def test_an_index_that_names_files_outside_its_folder_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, torch.randn(2, 2), [((0, 0), (2, 2))])
    metadata = dcp.FileSystemReader(tmp_path).read_metadata()
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))

    with pytest.raises(BadInputError, match="secret"):
        TorchDistFolder.open(tmp_path)


@pytest.mark.parametrize(("text", "folder"), [("release", "release"), ("12\n", "iter_0000012")])
def test_the_tracker_file_says_which_iteration(tmp_path: Path, text: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / ".metadata").touch()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)

    assert iteration_folder(tmp_path) == tmp_path / folder


@pytest.mark.parametrize("text", ["", "../x", "-1", "release2"])
def test_a_tracker_file_that_says_nothing_sensible_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)

    with pytest.raises(BadInputError):
        iteration_folder(tmp_path)


def test_a_folder_without_tracker_or_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="latest_checkpointed_iteration"):
        iteration_folder(tmp_path)
