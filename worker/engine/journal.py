"""The journal of a partial folder: which parts are written, so that a later attempt need not write them again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .copy import Segment
from .part_queue import Segments

JOURNAL = ".ferry-parts"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(slots=True)
class Journal:
    """One line for each done part, after one that says of what. `fingerprint` ends with an id of this very folder."""

    fingerprint: str
    done: dict[int, Segments]
    _file: IO[str] = field(repr=False)

    @classmethod
    def begin(cls, folder: Path, fingerprint: str) -> "Journal":
        """Of an empty folder."""
        file = (folder / JOURNAL).open("x")
        file.write(json.dumps({"fingerprint": fingerprint}) + "\n")
        file.flush()
        return cls(fingerprint, {}, file)

    @classmethod
    def go_on(cls, folder: Path, known: "Known") -> "Journal":
        """Where an earlier attempt stopped; a line that it left half written is cut off."""
        path = folder / JOURNAL
        file = path.open("r+")
        file.truncate(known.end)
        file.seek(known.end)
        return cls(known.fingerprint, dict(known.done), file)

    def add(self, number: int, segments: Segments, *, synced: bool) -> None:
        """A part is written, and on the disk where `synced`; else it counts as long as this kernel runs."""
        self.done[number] = segments
        line = {"part": number, "segments": [_row(segment) for segment in segments]}
        self._file.write(json.dumps(line | ({} if synced else {"boot": _boot()})) + "\n")
        self._file.flush()

    def end(self, folder: Path) -> None:
        """All is written: a whole folder has none."""
        self.close()
        (folder / JOURNAL).unlink()

    def close(self) -> None:
        """Leave it to a later attempt."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Known:
    """What a journal says. Parts that may not have reached the disk before a crash of the machine are left out."""

    fingerprint: str
    done: dict[int, Segments]
    end: int


def read_journal(folder: Path) -> Known | None:
    """None where there is none that can be read."""
    try:
        data = (folder / JOURNAL).read_bytes()
    except OSError:
        return None
    lines = list(_lines(data))
    if not lines or "fingerprint" not in lines[0][0]:
        return None
    boot = _boot()
    done = {
        line["part"]: tuple(Segment(*row) for row in line["segments"])
        for line, _ in lines[1:]
        if line.get("boot", boot) == boot
    }
    return Known(lines[0][0]["fingerprint"], done, lines[-1][1])


def segments_json(segments: Segments) -> str:
    """As a store keeps them."""
    return json.dumps([_row(segment) for segment in segments])


def segments_of(text: str) -> Segments:
    """The way back."""
    return tuple(Segment(*row) for row in json.loads(text))


def _row(segment: Segment) -> list[Any]:
    return [segment.offset, segment.length, segment.label, segment.digest]


def _lines(data: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """(line, where it ends), up to the first that is not whole."""
    end = 0
    while (newline := data.find(b"\n", end)) >= 0:
        try:
            line = json.loads(data[end:newline])
        except ValueError:
            return
        end = newline + 1
        yield line, end


def _boot() -> str:
    return _BOOT.read_text().strip()
