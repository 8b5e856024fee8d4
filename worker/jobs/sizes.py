"""Sizes in bytes, as people write them."""

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """`5GB`, `500MiB`, `1000`; ValueError says what was expected."""
    match = _SIZE.match(text)
    if not match or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no size; write 5GB, 500MiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])
