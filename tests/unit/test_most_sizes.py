"""Counts that a plan would go through one by one have an end."""

import json
from pathlib import Path

import pytest

from tests.llama_folder import write_llama
from worker.handlers.config import read_model
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


@pytest.mark.parametrize("name", ["num_hidden_layers", "intermediate_size", "vocab_size"])
@pytest.mark.parametrize("size", [0, 10**30])
def test_a_config_alone_is_refused_as_an_import_of_it(tmp_path: Path, name: str, size: int) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=16)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, name: size}))

    with pytest.raises(BadInputError, match=f"found {size}, expected"):
        read_model(tmp_path / "hf")
