"""The family of Megatron's values, told by the values alone: right, or refused."""

import pytest

from tests.families.case import CASES, Case
from worker.jobs.errors import BadInputError
from worker.mapping.checkpoint_values import completed, model_of
from worker.mapping.family import ONLY_HF
from worker.mapping.record import Record
from worker.mapping.registry import family_of
from worker.mapping.upstream_classes import VARIANT_FIELDS

TOLD = {
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "glm4_moe",
    "deepseek_v2",
    "deepseek_v3",
    "nemotron",
}
"""Families that at least one of their cases tells."""


def megatron_values(case: Case) -> tuple[str, Record, Record]:
    """The family's name, its HF config as it stands for these values, and what Megatron's own classes hold of them."""
    hf = Record({"model_type": case.model_type, **case.config}, case.name)
    family = family_of(hf)
    values = family.to_mcore(hf)
    plain = {name: value for name, value in values.values.items() if not name.startswith(ONLY_HF)}
    return family.name, family.to_hf(values), completed(plain, "values")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_model_is_taken_for_what_it_is_or_refused(case: Case) -> None:
    name, hf, values = megatron_values(case)

    if _told(case) is None:
        with pytest.raises(BadInputError, match="--hf-config"):
            model_of(values)
        return

    model = model_of(values)
    same_but_in_name = {"mistral": "llama"}
    if model.family.name == same_but_in_name.get(name):
        assert values.get("window_size") is None
        return
    # Megatron's add_bias_linear gives every layer a bias; that HF lacked some of them is not in these values.
    unsaid = {"attention_bias", "mlp_bias"} if values.get("add_bias_linear") else set[str]()
    said = [{key: value for key, value in of.values.items() if key not in unsaid} for of in (model.hf, hf)]
    assert model.family.name == name
    assert said[0] == said[1]


def test_most_families_are_told() -> None:
    assert {told for case in CASES if (told := _told(case))} == TOLD


def _told(case: Case) -> str | None:
    try:
        return model_of(megatron_values(case)[2]).family.name
    except BadInputError:
        return None


@pytest.mark.parametrize("name", sorted(VARIANT_FIELDS))
def test_what_needs_our_own_layers_is_never_guessed(name: str) -> None:
    case = next(case for case in CASES if case.name == "gqa")
    _, _, values = megatron_values(case)

    with pytest.raises(BadInputError):
        model_of(Record({**values.values, name: 2.0}, "values"))
