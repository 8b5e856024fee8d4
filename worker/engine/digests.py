"""Digests folded: from segments, as they were copied, to one per tensor and one per file."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import xxhash

from .copy import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """A written file. `segments` lists (length, digest) from its first byte to its last."""

    bytes: int
    digest: str
    segments: tuple[tuple[int, str], ...]


def digest_of(data: bytes) -> str:
    """xxh3-128, in hex."""
    return xxhash.xxh3_128(data).hexdigest()


def file_digest(segments: Iterable[Segment]) -> FileDigest:
    """A file's digest is the digest of its segments' digests, in order."""
    ordered = sorted(segments, key=lambda segment: segment.offset)
    return FileDigest(
        bytes=sum(segment.length for segment in ordered),
        digest=fold(segment.digest for segment in ordered),
        segments=tuple((segment.length, segment.digest) for segment in ordered),
    )


def tensor_digests(files: Mapping[str, Iterable[Segment]]) -> dict[str, str]:
    """One per tensor: its only segment's digest, or the fold of several."""
    labelled: defaultdict[str, list[str]] = defaultdict(list)
    for segments in files.values():
        for segment in sorted(segments, key=lambda segment: segment.offset):
            if segment.label is not None:
                labelled[segment.label].append(segment.digest)
    return {name: digests[0] if len(digests) == 1 else fold(digests) for name, digests in labelled.items()}


def fold(digests: Iterable[str]) -> str:
    """The xxh3-128 of the digests' bytes, one after the other."""
    return digest_of(b"".join(bytes.fromhex(digest) for digest in digests))
