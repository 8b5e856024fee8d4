"""Counts that a plan would go through one by one have an end."""

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.record import Record
from worker.mapping.sizes import common_sizes

VALUES = {"num_layers": 2, "hidden_size": 8, "vocab_size": 16, "ffn_hidden_size": 8, "num_moe_experts": 4}


def test_ordinary_sizes_are_as_they_are_said() -> None:
    assert common_sizes(Record(VALUES, "a config"))["experts"] == 4


@pytest.mark.parametrize("name", sorted(VALUES))
def test_what_no_model_has_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(BadInputError, match=name):
        common_sizes(Record({**VALUES, name: 10**12}, "a config"))
