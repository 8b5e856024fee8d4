"""The nearest factors of a rank, against the singular values themselves."""

import numpy as np
import pytest

from worker.engine.extraction import low_rank, norm, rest


def matrix(rows: int, columns: int, decay: float) -> np.ndarray:
    chance = np.random.default_rng(rows)
    small = min(rows, columns)
    left, _ = np.linalg.qr(chance.standard_normal((rows, small)))
    right, _ = np.linalg.qr(chance.standard_normal((columns, small)))
    return ((left * decay ** np.arange(small)) @ right.T).astype(np.float32)


@pytest.mark.parametrize("decay", [0.9, 0.99, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(40, 90), (700, 600), (600, 900)])
def test_no_other_factors_come_nearer(rows: int, columns: int, decay: float) -> None:
    of = matrix(rows, columns, decay)
    values = np.linalg.svd(of, compute_uv=False)

    found = low_rank(of, 8)

    assert (found.a.shape, found.b.shape) == ((8, columns), (rows, 8))
    assert rest(of, found) == pytest.approx(np.sqrt(np.sum(values[8:] ** 2)), rel=1e-3)
    assert norm(of) == pytest.approx(np.sqrt(np.sum(values**2)), rel=1e-6)


def test_a_rank_beyond_the_matrix_is_filled_with_zeros() -> None:
    of = matrix(5, 7, 0.5)

    found = low_rank(of, 9)

    np.testing.assert_allclose(found.b @ found.a, of, atol=1e-6)
    assert not found.a[5:].any()
    assert not found.b[:, 5:].any()


def test_the_same_matrix_gives_the_same_factors() -> None:
    of = matrix(700, 600, 0.99)

    one, other = low_rank(of, 4), low_rank(of, 4)

    assert np.array_equal(one.a, other.a)
    assert np.array_equal(one.b, other.b)


def test_no_difference_gives_zeros() -> None:
    found = low_rank(np.zeros((600, 700), np.float32), 4)

    assert not found.a.any()
    assert not found.b.any()
