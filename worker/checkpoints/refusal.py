"""The error for a Megatron checkpoint that is not what it should be."""

from pathlib import Path

from ..jobs.errors import BadInputError


def bad_checkpoint(path: Path, found: str, expected: str, *, missing: bool = False) -> BadInputError:
    """`path` is the folder or file; `missing` tells what is not there from what is broken."""
    return BadInputError(
        "missing_file" if missing else "bad_checkpoint",
        f"Megatron checkpoint {path}",
        found=found,
        expected=expected,
        next_step="Wait until its trainer has saved it, where it still does. Else point at the folder that Megatron "
        "saved (with its tracker file), and check that it is complete.",
    )
