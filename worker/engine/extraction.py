"""The factors that come nearest to a matrix at a given rank, by singular values; and what they leave of it."""

from dataclasses import dataclass

import numpy as np

from .arithmetic import Floats
from .blas import one_thread

_MORE = 16
"""Directions looked at beside those that are kept: the last of them come out less exact."""
_SMALL = 512
"""Of a side: so small a matrix is taken apart whole."""
_ROUNDS = 60
_SETTLED = 1e-7
"""Of the square of what is kept: so little more a round must bring."""
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class LowRank:
    """b @ a is the nearest to the matrix."""

    a: Floats
    """[rank, columns]"""
    b: Floats
    """[rows, rank]"""


def low_rank(matrix: Floats, rank: int) -> LowRank:
    """The singular values are shared out evenly; where the matrix has fewer than `rank`, the rest is zeros."""
    one_thread()
    if min(matrix.shape) <= max(_SMALL, 2 * (rank + _MORE)):
        left, values, right = _whole(matrix)
    else:
        left, values, right = _largest(matrix, rank)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    a, b = np.zeros((rank, matrix.shape[1]), np.float32), np.zeros((matrix.shape[0], rank), np.float32)
    a[:kept] = root[:, None] * right[:kept]
    b[:, :kept] = left[:, :kept] * root
    return LowRank(a, b)


def _whole(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return left.astype(np.float32), values.astype(np.float32), right.astype(np.float32)


def norm(matrix: Floats) -> float:
    """Frobenius'."""
    return float(np.sqrt(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64)))


def rest(matrix: Floats, found: LowRank) -> float:
    """The norm of what the factors leave, some rows at a time."""
    blocks = (slice(at, at + _ROWS) for at in range(0, len(matrix), _ROWS))
    return float(np.sqrt(sum(norm(np.subtract(matrix[rows], found.b[rows] @ found.a)) ** 2 for rows in blocks)))


def _largest(matrix: Floats, rank: int) -> tuple[Floats, Floats, Floats]:
    """Singular vectors and values by subspace iteration; the same for the same matrix."""
    chance = np.random.default_rng(0)
    inner = chance.standard_normal((rank + _MORE, matrix.shape[1]), dtype=np.float32)
    columns, before = _step(matrix, inner), 0.0
    for _ in range(_ROUNDS):
        inner = columns.T @ matrix
        kept = float(np.sum(np.linalg.eigvalsh(inner @ inner.T)[-rank:]))
        if kept - before <= _SETTLED * kept:
            break
        columns, before = _step(matrix, inner), kept
    left, values, right = np.linalg.svd(columns.T @ matrix, full_matrices=False)
    return np.matmul(columns, left, dtype=np.float32), values, right


def _step(matrix: Floats, inner: Floats) -> Floats:
    """An orthonormal basis of what the matrix makes of these rows: nearer to its largest singular vectors."""
    rows = np.linalg.qr(inner.T)[0]
    return np.linalg.qr(matrix @ rows)[0]
