"""Rope: both of HF's spellings, every type that Megatron has, and a clear no to the rest."""

from typing import Any

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.record import Record
from worker.mapping.rope import Rope

LLAMA3: dict[str, Any] = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 64}


def to_mcore(**config: object) -> dict[str, object]:
    return Rope().to_mcore(Record({"max_position_embeddings": 256, **config}, "config.json"))


def old(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"rope_theta": 5e5, "rope_scaling": {"type": kind, **options}}


def new(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 5e5, "rope_type": kind, **options}}


@pytest.mark.parametrize(
    ("kind", "options"), [("default", {}), ("linear", {"factor": 2.0}), ("llama3", LLAMA3), ("yarn", YARN)]
)
def test_both_spellings_mean_the_same(kind: str, options: dict[str, Any]) -> None:
    assert to_mcore(**old(kind, options)) == to_mcore(**new(kind, options))


def test_llama_2_has_no_scaling() -> None:
    values = to_mcore(rope_scaling=None)

    assert values == {
        "position_embedding_type": "rope",
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rope_scaling": False,
    }


def test_llama_3_scaling_carries_its_factor() -> None:
    values = to_mcore(**old("llama3", LLAMA3))

    assert (values["rope_scaling"], values["rope_scaling_factor"], values["rotary_base"]) == (True, 32.0, 500000)


def test_a_base_that_is_no_integer_stays_what_it_is() -> None:
    assert to_mcore(rope_theta=1234.5)["rotary_base"] == 1234.5


@pytest.mark.parametrize("field", ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_llama_3_values_that_megatron_fixes_are_refused(field: str) -> None:
    with pytest.raises(BadInputError, match=field):
        to_mcore(**old("llama3", LLAMA3 | {field: 2}))


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional", 3])
def test_a_rope_that_megatron_lacks_is_refused(kind: object) -> None:
    with pytest.raises(BadInputError) as refused:
        to_mcore(rope_scaling={"rope_type": kind, "factor": 2.0})

    assert refused.value.info.code == "unsupported_config_value"


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(BadInputError, match="surprise") as refused:
        to_mcore(**new("yarn", YARN | {"surprise": 1}))

    assert refused.value.info.code == "unknown_config_field"


def test_partial_rotation_is_refused() -> None:
    with pytest.raises(BadInputError, match="partial_rotary_factor"):
        to_mcore(**new("default", {"partial_rotary_factor": 0.5}))


def test_two_spellings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BadInputError, match="rope_scaling"):
        to_mcore(**new("default", {}), rope_scaling={"type": "linear", "factor": 2.0})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1.0, 0.0)),
        ({"mscale": 0.7, "mscale_all_dim": 0.5}, (0.7, 0.5)),
        ({"mscale": 0.7}, (1.0, 0.0)),  # HF takes mscale only where both are given.
    ],
)
def test_yarn_takes_mscale_as_hf_does(options: dict[str, Any], expected: tuple[float, float]) -> None:
    values = to_mcore(**new("yarn", YARN | options))

    assert (values["yarn_mscale"], values["yarn_mscale_all_dim"]) == expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("default", {}),
        ("linear", {"factor": 2.0}),
        ("llama3", LLAMA3),
        ("yarn", YARN),
        ("yarn", YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}),
        ("yarn", YARN | {"attention_factor": 1.3, "truncate": False, "beta_fast": 16, "beta_slow": 2}),
    ],
)
def test_the_way_back_loses_nothing(kind: str, options: dict[str, Any]) -> None:
    values = to_mcore(**new(kind, options))

    back = Rope().to_hf(Record(values, "model_config.json"))

    again = to_mcore(**back)
    assert again.pop("yarn_mscale", 0) == pytest.approx(values.pop("yarn_mscale", 0), rel=1e-12)
    assert again == values
