"""What stands against a run: a field, its value, and what Megatron-Core asks for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that Megatron-Core would refuse, or compute wrongly."""

    field: str
    """Of the spec."""
    found: str
    expected: str
    next_step: str = "Choose another size."
