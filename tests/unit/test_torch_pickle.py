"""Pickles are read without running anything, and written as Python's own pickle reads them."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.checkpoints.torch_pickle import Call, Global, Inert, Pairs, read_inert, write

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_python_reads_what_we_write(value: object) -> None:
    assert pickle.loads(write(value)) == value


@given(PLAIN)
def test_we_read_what_python_writes(value: object) -> None:
    assert read_inert(pickle.dumps(value)) == value


def test_calls_and_object_keys_are_written_as_python_makes_them() -> None:
    size = Call(Global("torch", "Size"), ((2, 3),))

    assert pickle.loads(write(Pairs(((size, "a"),)))) == {torch.Size((2, 3)): "a"}


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    armed = pickle.dumps({"state_dict_metadata": Bomb(tmp_path / "harm")})

    read = read_inert(armed)

    assert not (tmp_path / "harm").exists()
    assert isinstance(read["state_dict_metadata"], Inert)


def test_torchs_own_types_come_out_plain() -> None:
    read = read_inert(pickle.dumps((torch.Size((1, 2)), torch.bfloat16, OrderedDict(a=1))))

    assert read == ((1, 2), "bfloat16", {"a": 1})


def test_a_broken_pickle_is_pickles_own_error() -> None:
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        read_inert(pickle.dumps({"a": 1})[:-3])
