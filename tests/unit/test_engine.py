"""The engine: every byte where the plan says, whatever the cuts, and digests that anyone can take again."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.checkpoints.extents import Extent, Literal, Run, Span, Strand, TargetFile, Weave, Zeros
from worker.engine import convert, copy
from worker.engine.copy import copy_part
from worker.engine.digests import fold
from worker.engine.part_queue import ListedParts
from worker.engine.parts import cut_parts, part_bytes_for, split
from worker.engine.processes import Copy, CopyOptions, do_parts
from worker.engine.reading import BUFFER_BYTES, SourceFiles
from worker.engine.throttle import IoLimit
from worker.engine.write_behind import begin_writing
from worker.jobs.errors import BadInputError


def noise(path: Path, size: int) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def unheard(done: int) -> None:
    pass


def target(name: str, *extents: Extent) -> TargetFile:
    return TargetFile(path=name, spans=(Span(offset=0, extents=extents, label="tensor"),))


def write_tensors(
    files: tuple[TargetFile, ...], folder: Path, options: CopyOptions, report: Callable[[int], None]
) -> convert.Written:
    started = time.monotonic()
    for file in files:
        (folder / file.path).touch()
    parts = cut_parts(files, part_bytes_for(convert.total_bytes(files)))
    queue = ListedParts(range(len(parts)))
    do_parts(parts, queue, Copy(folder), options, report)
    for file in files:
        os.truncate(folder / file.path, file.size)
    return convert.written(parts, queue.finished, time.monotonic() - started)


def written(tmp_path: Path, *files: TargetFile, processes: int = 1) -> list[bytes]:
    out = tmp_path / "out"
    out.mkdir()
    write_tensors(files, out, CopyOptions(processes=processes), unheard)
    return [(out / file.path).read_bytes() for file in files]


def test_runs_literals_and_zeros_come_out_in_order(tmp_path: Path) -> None:
    data = noise(tmp_path / "source", 3 * BUFFER_BYTES + 17)
    source = tmp_path / "source"
    extents = (Literal(b"head"), Run(source, 5, 2 * BUFFER_BYTES), Zeros(9), Run(source, 1, 3), Literal(b"tail"))

    [out] = written(tmp_path, target("file", *extents))

    assert out == b"head" + data[5 : 5 + 2 * BUFFER_BYTES] + bytes(9) + data[1:4] + b"tail"


@pytest.mark.parametrize("row_bytes", [6, 4096, BUFFER_BYTES // 2 + 8, BUFFER_BYTES + 24])
def test_column_cuts_are_woven_back_into_rows(tmp_path: Path, row_bytes: int) -> None:
    rows, left = 5, row_bytes // 3
    whole = noise(tmp_path / "whole", rows * row_bytes)
    by_row = [whole[row * row_bytes : (row + 1) * row_bytes] for row in range(rows)]
    (tmp_path / "left").write_bytes(b"".join(row[:left] for row in by_row))
    (tmp_path / "right").write_bytes(b"pad" + b"".join(row[left:] for row in by_row))
    strands = (Strand(tmp_path / "left", 0, left), Strand(tmp_path / "right", 3, row_bytes - left))

    [out] = written(tmp_path, target("file", Literal(b"x"), Weave(rows, strands)))

    assert out == b"x" + whole


def test_holes_of_a_sparse_source_are_zeros_and_stay_holes(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.seek(40 * BUFFER_BYTES)
        file.write(b"end")

    [out] = written(tmp_path, target("file", Run(source, 0, 40 * BUFFER_BYTES + 3)))

    assert out == bytes(40 * BUFFER_BYTES) + b"end"
    assert (tmp_path / "out" / "file").stat().st_blocks * 512 < BUFFER_BYTES


def test_a_source_cut_short_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    noise(tmp_path / "source", 100)

    with pytest.raises(BadInputError) as refused:
        written(tmp_path, target("file", Run(tmp_path / "source", 50, 51)))

    assert refused.value.info.code == "source_changed"


@pytest.mark.parametrize("processes", [1, 3, 50])
def test_any_number_of_processes_writes_the_same_bytes_and_digests(tmp_path: Path, processes: int) -> None:
    data = noise(tmp_path / "source", 200 * 2**20)
    half = len(data) // 2
    files = (target("a", Run(tmp_path / "source", 0, half)), target("b", Run(tmp_path / "source", half, half)))
    (tmp_path / "out").mkdir()

    result = write_tensors(files, tmp_path / "out", CopyOptions(processes=processes), unheard)

    assert (tmp_path / "out" / "a").read_bytes() + (tmp_path / "out" / "b").read_bytes() == data
    assert result.files["a"].digest == fold([xxhash.xxh3_128(data[:half]).hexdigest()])


def test_a_files_digest_can_be_taken_again_from_its_segments(tmp_path: Path) -> None:
    data = noise(tmp_path / "source", 1000)
    spans = (
        Span(offset=0, extents=(Literal(b"header"),)),
        Span(offset=6, extents=(Run(tmp_path / "source", 0, 1000),), label="tensor"),
    )
    (tmp_path / "out").mkdir()

    result = write_tensors((TargetFile(path="file", spans=spans),), tmp_path / "out", CopyOptions(), unheard)

    read, digests, position = (tmp_path / "out" / "file").read_bytes(), [], 0
    for length, _ in result.files["file"].segments:
        digests.append(xxhash.xxh3_128(read[position : position + length]).hexdigest())
        position += length
    assert position == len(read)
    assert fold(digests) == result.files["file"].digest
    assert result.tensors == {"tensor": xxhash.xxh3_128(data).hexdigest()}


def test_progress_ends_at_every_byte(tmp_path: Path) -> None:
    noise(tmp_path / "source", 5 * BUFFER_BYTES)
    seen: list[int] = []
    (tmp_path / "out").mkdir()
    files = (target("file", Run(tmp_path / "source", 0, 5 * BUFFER_BYTES), Zeros(7)),)

    write_tensors(files, tmp_path / "out", CopyOptions(processes=2), seen.append)

    assert seen[-1] == 5 * BUFFER_BYTES + 7
    assert seen == sorted(seen)


def test_a_limit_on_bytes_per_second_holds(tmp_path: Path) -> None:
    noise(tmp_path / "source", 4 * BUFFER_BYTES)
    (tmp_path / "out").mkdir()
    options = CopyOptions(processes=1, limits=(IoLimit(tmp_path / "clock", 8 * BUFFER_BYTES),))

    result = write_tensors(
        (target("file", Run(tmp_path / "source", 0, 4 * BUFFER_BYTES)),), tmp_path / "out", options, unheard
    )

    assert result.copy_seconds > 0.4


EXTENTS = st.lists(
    st.one_of(
        st.builds(lambda n: Run(Path("s"), 3, n), st.integers(1, 5000)),
        st.builds(Zeros, st.integers(1, 5000)),
        st.builds(Literal, st.binary(min_size=1, max_size=300)),
        st.builds(
            lambda rows, a, b: Weave(rows, (Strand(Path("s"), 0, a), Strand(Path("t"), 9, b))),
            st.integers(1, 50),
            st.integers(1, 40),
            st.integers(1, 40),
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(EXTENTS, st.integers(1, 3000))
def test_segments_tile_their_span(extents: list[Extent], most: int) -> None:
    span = Span(offset=10, extents=tuple(extents), label="t")

    pieces = list(split(span, most))

    ends = [10]
    for piece in pieces:
        assert piece.offset == ends[-1]
        ends.append(piece.offset + piece.length)
    assert ends[-1] == 10 + span.length


@settings(max_examples=50)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.integers(1, 2000))
def test_parts_hold_every_span_once(sizes: list[int], part_bytes: int) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    spans = tuple(Span(offset=start, extents=(Zeros(size),)) for start, size in zip(starts, sizes, strict=True))

    parts = cut_parts([TargetFile(path="f", spans=spans)], part_bytes)

    assert tuple(span for part in parts for span in part.spans) == spans


def test_files_take_turns_so_that_workers_write_to_different_ones() -> None:
    files = [target(name, Zeros(length)) for name, length in (("a", 300), ("b", 100), ("c", 200))]

    parts = cut_parts(files, 100, 100)

    assert [(part.file, part.spans[0].offset) for part in parts] == [
        ("a", 0), ("b", 0), ("c", 0), ("a", 100), ("c", 100), ("a", 200),
    ]  # fmt: skip


def test_the_disk_is_asked_to_work_while_bytes_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, asked = 20 * 2**20, list[tuple[int, int]]()
    data = noise(tmp_path / "source", size)
    (tmp_path / "out").touch()
    (part,) = cut_parts((target("out", Run(tmp_path / "source", 0, size)),), 2 * size)

    def heard(descriptor: int, start: int, length: int) -> None:
        begin_writing(descriptor, start, length)
        assert (tmp_path / "out").stat().st_size >= start + length
        asked.append((start, start + length))

    monkeypatch.setattr(copy, "begin_writing", heard)
    copy_part(part, tmp_path / "out", unheard, SourceFiles())

    assert asked == [(0, 8 * 2**20), (8 * 2**20, 16 * 2**20)]
    assert (tmp_path / "out").read_bytes() == data


def test_no_copy_process_outlives_its_work(tmp_path: Path) -> None:
    noise(tmp_path / "source", 1000)
    before = set(psutil.Process().children())

    written(tmp_path, target("file", Run(tmp_path / "source", 0, 1000)), processes=2)

    assert set(psutil.Process().children()) == before
