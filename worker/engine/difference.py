"""How far two stretches of values lie apart, by numpy."""

from collections.abc import Iterable

import numpy as np

from ..checkpoints.extents import Extent
from .arithmetic import Floats, widened
from .reading import SourceFiles

_ROUNDING = np.float32(2.0**-21)
"""A few times fp32's own: what is left of a value that was scaled by one over itself and back."""


def squared_difference(one: Iterable[Extent], other: Iterable[Extent], dtype: str) -> float:
    """The sum of squares, in fp64."""
    ours, theirs = _floats(one, dtype), _floats(other, dtype)
    apart = np.subtract(ours, theirs, out=ours if ours.flags.writeable else None)
    return float(np.einsum("i,i->", apart, apart, dtype=np.float64))


def differs(one: Iterable[Extent], other: Iterable[Extent], dtype: str) -> bool:
    """Whether any value is another one, fp32's rounding aside; NaN is another one."""
    ours, theirs = _floats(one, dtype), _floats(other, dtype)
    return not bool((np.abs(ours - theirs) <= _ROUNDING * np.abs(theirs)).all())


def _floats(extents: Iterable[Extent], dtype: str) -> Floats:
    files = SourceFiles()
    try:
        pieces = [widened(files.whole(extent), dtype) for extent in extents]
    finally:
        files.close()
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
