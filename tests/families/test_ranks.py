"""The pool of ranks reports what goes wrong on one of them, at once, and works again."""

import time
from collections.abc import Iterator
from contextlib import closing

import psutil
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


def test_ranks_stand_still_between_calls(ranks: Ranks) -> None:
    answers = ranks.run("os:getpid")

    deadline = time.monotonic() + 10
    while {psutil.Process(pid).status() for pid in answers} != {psutil.STATUS_STOPPED}:
        assert time.monotonic() < deadline, "they go on"
        time.sleep(0.01)
    assert ranks.run("os:getpid") == answers
