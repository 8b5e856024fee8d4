"""The pool of ranks reports what goes wrong on one of them, at once, and works again."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.megatron.ranks import RankError, Ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two ranks that only ever import torch."""
    with closing(Ranks(2)) as ranks:
        yield ranks


def test_an_error_comes_with_its_traceback(ranks: Ranks) -> None:
    with pytest.raises(RankError, match=r"(?s)rank 0 of 2.*Traceback.*No module named 'absent'"):
        ranks.run("absent:function")


def test_a_rank_that_dies_is_named(ranks: Ranks) -> None:
    with pytest.raises(RankError, match=r"rank 0 of 2 ended \(3\)"):
        ranks.run("os:_exit", status=3)


def test_the_pool_starts_again_after_an_error(ranks: Ranks) -> None:
    with pytest.raises(RankError):
        ranks.run("absent:function")

    assert len(set(ranks.run("os:getpid"))) == 2
