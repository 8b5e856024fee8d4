"""Blocks of a file system that two files share: which of a plan could be, and the call that shares them (reflink)."""

import errno
import fcntl
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .extents import Extent, Run, Span

BLOCK_BYTES = 4096
"""Of btrfs and xfs on common machines; where blocks are larger, the call is refused and bytes are copied."""
_LEAST_SHARED_BYTES = 64 * 2**10
_LEAST_ALIGNED_BYTES = 2**20
"""What is smaller is not worth the padding."""
_FICLONERANGE = 0x4020940D
_REFUSALS = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY})
"""Another file system, one that cannot share, other blocks, a file that may not be shared: bytes are copied then."""


def whole_blocks(source_offset: int, target_offset: int, length: int) -> tuple[int, int]:
    """(head, length) of the blocks that a stretch covers wholly in both files; length 0 where none are worth it."""
    head = -source_offset % BLOCK_BYTES
    shared = (length - head) // BLOCK_BYTES * BLOCK_BYTES
    if (source_offset - target_offset) % BLOCK_BYTES or shared < _LEAST_SHARED_BYTES:
        return 0, 0
    return head, shared


def share(target: int, target_offset: int, source: int, source_offset: int, length: int) -> bool:
    """Let the target's blocks be the source's, by ioctl_ficlonerange(2); False where they cannot be."""
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("qQQQ", source, source_offset, length, target_offset))
    except OSError as error:
        if error.errno in _REFUSALS:
            return False
        raise
    return True


def can_share(source: Path, folder: Path) -> bool:
    """Whether files in (the nearest existing parent of) `folder` can share blocks with `source`; tries it."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with source.open("rb") as file, tempfile.TemporaryFile(dir=place) as trial:
            trial.truncate(BLOCK_BYTES)
            return share(trial.fileno(), 0, file.fileno(), 0, BLOCK_BYTES)
    except OSError:
        return False


def shared_bytes(spans: Iterable[Span], folder: Path) -> int:
    """How many bytes of these spans files in `folder` would share with their sources."""
    found: Counter[Path] = Counter()
    for span in spans:
        at = span.offset
        for extent in span.extents:
            if isinstance(extent, Run):
                found[extent.path] += whole_blocks(extent.offset, at, extent.length)[1]
            at += extent.length
    sharing: dict[int, bool] = {}
    total = 0
    for path, nbytes in found.items():
        device = path.stat().st_dev if nbytes else -1
        if nbytes and device not in sharing:
            sharing[device] = can_share(path, folder)
        total += nbytes if sharing.get(device) else 0
    return total


def padding_before(extents: Iterable[Extent], target_offset: int, step: int = 1) -> int:
    """Bytes, a multiple of `step`, to put before these extents so that most of them can be shared.

    `target_offset` is where they would begin without.
    """
    gains: Counter[int] = Counter()
    at = target_offset
    for extent in extents:
        if isinstance(extent, Run):
            gains[(extent.offset - at) % BLOCK_BYTES] += extent.length
        at += extent.length
    possible = {padding: nbytes for padding, nbytes in gains.items() if padding % step == 0}
    best = max(possible, key=lambda padding: (possible[padding], -padding), default=0)
    return best if possible.get(best, 0) >= _LEAST_ALIGNED_BYTES else 0
