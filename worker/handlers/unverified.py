"""What verification says where it fails, or cannot be done."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ..checkpoints.torch_dist import METADATA
from ..jobs.errors import BadInputError, TransientError

NAMED = 3
"""Of many differences, so many are named."""


def some(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def differs(thing: str, found: str, expected: str) -> BadInputError:
    """A checkpoint that is not what it should be."""
    return BadInputError(
        "not_verified",
        thing,
        found=found,
        expected=expected,
        next_step="Do not use it; make it anew from its source, and check the disk if that repeats.",
    )


def not_verified(thing: str, found: str, expected: str) -> BadInputError:
    """A check that failed."""
    return BadInputError(
        "not_verified",
        thing,
        found=found,
        expected=expected,
        next_step="Nothing was published. Do not use what made it; report it with its plan.",
    )


def lost() -> TransientError:
    """A check that may succeed the next time."""
    return TransientError(
        "attempt_lost",
        "the process that verifies",
        found="its end without an answer (killed, perhaps for memory)",
        expected="an answer",
        next_step="Retry; if it repeats, look for the kernel's out-of-memory messages.",
    )


def last_line(log: IO[bytes]) -> str:
    """What a process of ours said last, cut to a line of an error; all of it goes where errors go."""
    log.seek(0)
    text = log.read().decode(errors="replace")
    sys.stderr.write(text)
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no word")[:300]


def refuse_older_format(folder: Path, check: str) -> None:
    """BadInputError where an iteration folder's own libraries know no single tensor of it."""
    if not (folder / METADATA).exists():
        raise BadInputError(
            "bad_request",
            f"{check} of checkpoint {folder}",
            found="Megatron's older torch format, which is pieces of tensors by rank",
            expected="torch_dist",
            next_step="Leave it out, and compare with `ferry verify A B` afterwards.",
        )
