"""A setup's plan as a person reads it: whether it fits, what a rank holds, the files, and the conversion in short."""

from typing import Any

_CONVERSION = ("bytes", "memory_bound_bytes", "largest_tensor", "plan_digest")
_LONG = ("parts", "tasks")
_FILES = ("files", "small_files", "carried", "linked")


def in_order(plan: dict[str, Any], *, verbose: bool) -> dict[str, Any]:
    """`verbose`: with each part of the copy and what goes into each tensor."""
    left = dict(plan)
    setup: dict[str, Any] = left.pop("setup")
    head = {name: left.pop(name) for name in ("kind", "family", "source", "target")}
    files = {name: left.pop(name) for name in _FILES}
    conversion = {name: left.pop(name) for name in _CONVERSION}
    each = {name: left.pop(name) for name in _LONG}
    counted = {name: len(items) for name, items in each.items()}
    return {
        "verdict": setup["verdict"],
        **head,
        "setup": {name: value for name, value in setup.items() if name != "verdict"},
        **files,
        "conversion": {**conversion, **counted},
        **left,
        **(each if verbose else {}),
    }
