"""LoRA and DoRA added to rows of a base, by numpy: in fp32, rounded once, or step by step as PEFT does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints.operations import PRODUCT_ROWS, Combination, Factors, LowRankUpdate
from .arithmetic import Bytes, Floats, narrowed, widened
from .blas import one_thread
from .combination import combined


@dataclass(frozen=True, slots=True)
class Pair:
    """Factors as fp32 matrices: their product is `scale` * left [rows, rank] @ right [rank, columns]."""

    scale: float
    left: Floats
    right: Floats
    magnitude: Floats | None
    by_column: bool
    """The magnitude is one of columns."""
    dtype: str
    """What the product is rounded to, step by step."""
    twice: bool = False
    """Before it is scaled too."""

    def product(self, first: int, rows: int, *, stepwise: bool = False) -> Floats:
        """Some rows of it, made in blocks that do not depend on which."""
        start, end = first // PRODUCT_ROWS * PRODUCT_ROWS, first + rows
        blocks = [self.left[at : at + PRODUCT_ROWS] @ self.right for at in range(start, end, PRODUCT_ROWS)]
        made = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        made = made[first - start : end - start]
        if stepwise and self.twice:
            made = rounded(made, self.dtype)
        made *= np.float32(self.scale)
        return rounded(made, self.dtype) if stepwise else made


def prepared(operation: LowRankUpdate, shared: tuple[Bytes, ...]) -> tuple[LowRankUpdate, tuple[Bytes, ...]]:
    """The same update with its factors in fp32, the way round that they are multiplied, and combined."""
    one_thread()
    pairs = tuple(_read(operation, shared))
    if operation.combination is not None:
        pairs = (_combined(operation.combination, pairs, stepwise=operation.stepwise),)
    known = tuple(map(_described, pairs))
    operands = [part.reshape(-1).view(np.uint8) for pair in pairs for part in _parts(pair)]
    return replace(operation, factors=known, combination=None), tuple(operands)


def _combined(how: Combination, pairs: tuple[Pair, ...], *, stepwise: bool) -> Pair:
    turned, dtype = pairs[0].by_column, pairs[0].dtype
    factors = [(pair.scale, *((pair.left.T, pair.right.T) if turned else (pair.right, pair.left))) for pair in pairs]
    b, a = combined(how, factors)
    if stepwise:
        b, a = rounded(b, dtype), rounded(a, dtype)
    left, right = (a.T, b.T) if turned else (b, a)
    return Pair(1.0, np.ascontiguousarray(left), np.ascontiguousarray(right), None, turned, dtype)


def _read(operation: LowRankUpdate, shared: tuple[Bytes, ...]) -> Iterator[Pair]:
    operands = iter(shared)
    for factors in operation.factors:
        a = widened(next(operands), factors.a_dtype).reshape(factors.rank, -1)
        b = widened(next(operands), factors.b_dtype).reshape(-1, factors.rank)
        magnitude = widened(next(operands), factors.magnitude) if factors.magnitude else None
        left, right = (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if factors.turned else (b, a)
        yield Pair(factors.scale, left, right, magnitude, factors.turned, factors.b_dtype, factors.twice)


def _described(pair: Pair) -> Factors:
    """`b_dtype` goes on to say what the product is rounded to, step by step."""
    magnitude = None if pair.magnitude is None else "F32"
    return Factors(pair.scale, pair.right.shape[0], "F32", pair.dtype, pair.by_column, magnitude, pair.twice)


def _parts(pair: Pair) -> tuple[Floats, ...]:
    parts = (np.ascontiguousarray(pair.left), np.ascontiguousarray(pair.right))
    return parts if pair.magnitude is None else (*parts, pair.magnitude)


def pairs_of(operation: LowRankUpdate, shared: tuple[Bytes, ...]) -> Iterator[Pair]:
    """What `prepared` left, as matrices again."""
    operands = iter(shared)
    for factors in operation.factors:
        left = next(operands).view(np.float32).reshape(operation.rows, factors.rank)
        right = next(operands).view(np.float32).reshape(factors.rank, operation.columns)
        magnitude = next(operands).view(np.float32) if factors.magnitude else None
        yield Pair(factors.scale, left, right, magnitude, factors.turned, factors.b_dtype, factors.twice)


def updated(operation: LowRankUpdate, operands: tuple[Bytes, ...], first: int, rows: int) -> Bytes:
    """`rows` rows of the base with its prepared updates, from row `first`."""
    base = widened(operands[0], operation.source).reshape(rows, operation.columns)
    pairs = tuple(pairs_of(operation, operands[1:]))
    total = base
    for pair in pairs:
        add = _rounding_each(operation.source, pair.dtype) if operation.stepwise else _exact
        total = add(total, base, pair, first)
    return narrowed(total, operation.dtype)


def _exact(total: Floats, base: Floats, pair: Pair, first: int) -> Floats:
    """One more adapter. DoRA scales all before it too, as PEFT's forward pass does; its norm is over the base."""
    product = pair.product(first, len(base))
    if pair.magnitude is None:
        return np.add(total, product, out=product)
    alone = base + product
    factor = _spread(pair, pair.magnitude, _norms(alone, pair), first, len(base))
    scaled = alone if total is base else np.add(total, product, out=product)
    scaled *= factor
    return scaled


def _rounding_each(dtype: str, of_factors: str) -> Callable[[Floats, Floats, Pair, int], Floats]:
    """The same in PEFT's steps, each rounded to what torch makes of a base in `dtype` and these factors."""
    wide = dtype if dtype == of_factors else "F32"

    def add(total: Floats, base: Floats, pair: Pair, first: int) -> Floats:
        product = pair.product(first, len(base), stepwise=True)
        if pair.magnitude is None:
            return rounded(total + product, dtype)
        norms = rounded(_norms(rounded(base + product, wide), pair), wide)
        factor = rounded(_spread(pair, pair.magnitude, norms, first, len(base)), wide)
        return rounded(rounded(factor * rounded(total + product, wide), wide), dtype)

    return add


def _norms(values: Floats, pair: Pair) -> Floats:
    """Of each row, or of each column; sums in fp64, so that nothing depends on their order."""
    along = "ij,ij->j" if pair.by_column else "ij,ij->i"
    return np.sqrt(np.einsum(along, values, values, dtype=np.float64)).astype(np.float32)


def _spread(pair: Pair, magnitude: Floats, norms: Floats, first: int, rows: int) -> Floats:
    if pair.by_column:
        return (magnitude / norms)[None, :]
    return (magnitude[first : first + rows] / norms)[:, None]


def rounded(values: Floats, dtype: str) -> Floats:
    """fp32 values that the dtype holds."""
    if dtype == "F32":
        return values
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        odd = bits >> 16
        odd &= 1
        odd += 0x7FFF
        odd += bits
        odd &= 0xFFFF0000
        near = odd.view(np.float32)
        if np.isfinite(near).all() and np.isfinite(values).all():
            return near
    return widened(narrowed(values, dtype), dtype).reshape(values.shape)


def delta_norm(operation: LowRankUpdate, shared: tuple[Bytes, ...]) -> float:
    """The Frobenius norm of all (combined) products' sum, without making it; magnitudes are left out of it.

    It is finite where all factors and magnitudes are, and fp32 holds what they come to.
    """
    known, operands = prepared(operation, shared)
    pairs = tuple(pairs_of(known, operands))
    left = np.concatenate([pair.left.astype(np.float64) * pair.scale for pair in pairs], axis=1)
    right = np.concatenate([pair.right.astype(np.float64) for pair in pairs])
    if not all(pair.magnitude is None or np.isfinite(pair.magnitude).all() for pair in pairs):
        return float("nan")
    with np.errstate(invalid="ignore", over="ignore"):
        norm = np.sqrt(np.maximum(0.0, np.sum((left.T @ left) * (right @ right.T))))
        largest = max(norm, *(abs(pair.scale) for pair in pairs))
        return float(norm) if largest <= np.finfo(np.float32).max else float("nan")
