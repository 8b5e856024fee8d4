"""Blocks that output and source share: laid out for it, shared where that is possible, copied where it is not."""

import errno
import fcntl
import os
import random
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.checkpoints.extents import Extent, Item, Literal, Run, Span
from worker.checkpoints.safetensors_folder import lay_out_file
from worker.checkpoints.sharing import BLOCK_BYTES, can_share, padding_before, shared_bytes, whole_blocks
from worker.checkpoints.torch_dist_layout import lay_out_items
from worker.engine import copy
from worker.engine.copy import copy_part, digest_part
from worker.engine.parts import Part
from worker.engine.reading import SourceFiles

SIZE = 5 * 2**20
NOWHERE = Path("/nowhere")


def noise(path: Path, size: int = SIZE) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


def part_of(*extents: Extent, offset: int = 0) -> Part:
    return Part(file="out", spans=(Span(offset=offset, extents=extents, label="tensor"),))


class Sharing:
    """Stands in for the file system: copies, and refuses what a file system would."""

    def __init__(self, refuses: int = -1) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.refuses = refuses

    def __call__(self, target: int, target_offset: int, source: int, source_offset: int, length: int) -> bool:
        assert target_offset % BLOCK_BYTES == source_offset % BLOCK_BYTES == length % BLOCK_BYTES == 0
        assert length > 0
        assert source_offset + length <= os.fstat(source).st_size
        if len(self.calls) == self.refuses:
            return False
        self.calls.append((target_offset, source_offset, length))
        os.pwrite(target, os.pread(source, length, source_offset), target_offset)
        return True


def copied(part: Part, folder: Path, moved: Any = lambda _: None) -> tuple[bytes, str]:
    """From the part's offset on, and its digest."""
    out = folder / "out"
    out.touch()
    sources = SourceFiles()
    [segment] = copy_part(part, out, moved, sources)
    sources.close()
    return out.read_bytes()[part.spans[0].offset :], segment.digest


@settings(max_examples=60, deadline=None)
@given(
    source=st.integers(0, 3 * BLOCK_BYTES),
    target=st.integers(0, 3 * BLOCK_BYTES),
    length=st.integers(0, 2**20),
    congruent=st.booleans(),
)
def test_whole_blocks_lie_inside_and_meet(source: int, target: int, length: int, congruent: bool) -> None:
    target = source + 7 * BLOCK_BYTES if congruent else target

    head, shared = whole_blocks(source, target, length)

    assert 0 <= head <= head + shared <= length
    if shared:
        assert (source + head) % BLOCK_BYTES == (target + head) % BLOCK_BYTES == shared % BLOCK_BYTES == 0
    elif congruent:
        assert length < 64 * 2**10 + 2 * BLOCK_BYTES


@pytest.mark.parametrize("refuses", [-1, 0, 2])
@pytest.mark.parametrize("lead", [0, 9, BLOCK_BYTES - 1])
def test_what_is_shared_is_digested_and_what_is_refused_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: int, lead: int
) -> None:
    data = noise(tmp_path / "in")
    fake = Sharing(refuses)
    monkeypatch.setattr(copy, "share", fake)
    begin, length = 104, SIZE - 999
    heard: list[int] = []
    part = part_of(
        Literal(b"x" * lead), Run(tmp_path / "in", begin, length), Literal(b"end"), offset=begin - lead + 4096
    )
    expected = b"x" * lead + data[begin : begin + length] + b"end"

    found, digest = copied(part, tmp_path, heard.append)

    assert found == expected
    assert digest == xxhash.xxh3_128(expected).hexdigest()
    assert sum(heard) == len(expected)
    shared = sum(length for _, _, length in fake.calls)
    assert shared == (refuses if refuses >= 0 else 0) * 2**20 or (refuses < 0 and shared > length - 2 * BLOCK_BYTES)


def test_a_refusal_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "in")
    asked: list[int] = []

    def refuse(*ranges: int) -> bool:
        asked.append(ranges[-1])
        return False

    monkeypatch.setattr(copy, "share", refuse)
    run = Run(tmp_path / "in", 0, SIZE)

    copied(part_of(run, run, run), tmp_path)

    assert len(asked) == 1


def test_blocks_that_do_not_meet_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fake = noise(tmp_path / "in"), Sharing()
    monkeypatch.setattr(copy, "share", fake)

    found, _ = copied(part_of(Run(tmp_path / "in", 8, SIZE - 8)), tmp_path)

    assert found == data[8:]
    assert fake.calls == []


def test_a_digest_alone_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fake = noise(tmp_path / "in"), Sharing()
    monkeypatch.setattr(copy, "share", fake)
    sources = SourceFiles()

    [segment] = digest_part(part_of(Run(tmp_path / "in", 0, SIZE)), lambda _: None, sources)
    sources.close()

    assert segment.digest == xxhash.xxh3_128(data).hexdigest()
    assert fake.calls == []


def test_what_stops_the_copy_keeps_the_block_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "in")
    fake = Sharing()
    monkeypatch.setattr(copy, "share", fake)

    def over(_: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        copied(part_of(Run(tmp_path / "in", 0, SIZE)), tmp_path, over)

    assert fake.calls == []
    assert (tmp_path / "out").stat().st_size == 0


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY])
def test_every_refusal_of_the_call_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    data = noise(tmp_path / "in")

    def ioctl(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)

    assert copied(part_of(Run(tmp_path / "in", 0, SIZE)), tmp_path)[0] == data
    assert not can_share(tmp_path / "in", tmp_path)


def test_other_errors_of_the_call_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "in")

    def ioctl(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)

    with pytest.raises(OSError, match="No space"):
        copied(part_of(Run(tmp_path / "in", 0, SIZE)), tmp_path)


def item(name: str, path: Path, offset: int, rows: int) -> Item:
    extents = (Run(path, offset, rows * 1024),)
    return Item(name=name, index=(), stack=(), dtype="U8", shape=(rows, 1024), extents=extents)


@pytest.mark.parametrize("offset", [8, 1000, 4096, 999_992])
def test_layouts_meet_the_blocks_of_their_source(tmp_path: Path, offset: int) -> None:
    items = tuple(item(f"t{n}", tmp_path / "in", offset + n * 2**22, 4096) for n in range(3))

    safetensors = lay_out_file("model.safetensors", items)
    megatron = lay_out_items(items, "release", 2**40)

    for file in (safetensors, *megatron):
        spans = [span for span in file.spans if span.label]
        assert [span.offset % BLOCK_BYTES for span in spans] == [offset % BLOCK_BYTES] * 3
        assert file.spans[0].offset == 0
        ends = [span.offset + span.length for span in file.spans]
        assert [span.offset for span in file.spans[1:]] == ends[:-1]


def test_most_bytes_decide_where_not_all_can_meet(tmp_path: Path) -> None:
    extents = (Run(tmp_path, 4096 + 16, 2**21), Run(tmp_path, 32, 2**22), Run(tmp_path, 2**23 + 32, 2**22))

    assert padding_before(extents, 0) == 32
    assert padding_before(extents, 40) == BLOCK_BYTES - 8


def test_little_or_crooked_is_not_padded_for(tmp_path: Path) -> None:
    assert padding_before((Run(tmp_path, 16, 2**19),), 0) == 0
    assert padding_before((Run(tmp_path, 13, 2**22),), 0, 8) == 0
    assert padding_before((Literal(b"x" * 2**21),), 0) == 0


def test_a_plan_counts_nothing_where_nothing_can_be_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "in")
    spans = (Span(offset=4096, extents=(Run(tmp_path / "in", 4096, 2**20),), label="t"),)

    def ioctl(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert shared_bytes(spans, tmp_path / "new") == 0
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: b"")  # pyright: ignore[reportUnknownLambdaType]  # unused
    assert shared_bytes(spans, tmp_path / "new") == 2**20
    assert os.listdir(tmp_path) == ["in"]
