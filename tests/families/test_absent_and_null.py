"""What a field means that a config leaves out, and what an explicit null means: what HF's own class reads."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.families.case import Case, cases_of
from tests.families.selection import every_case
from tests.families.test_config import as_transformers_reads
from worker.jobs.errors import BadInputError
from worker.mapping.family import Family
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES, family_of

REFUSED = "refused"

# Where a page reads an absent field otherwise than HF's class, and why no model comes out different.
OTHERWISE = {
    ("deepseek_v3", "num_key_value_heads"): "HF's attention fails with any number but that of the heads",
    ("deepseek_v3", "num_nextn_predict_layers"): "HF's class neither loads nor saves the layer that it counts",
    ("glm4_moe", "num_nextn_predict_layers"): "HF's class neither loads nor saves the layer that it counts",
}

PAIRS = [(family, name) for family in FAMILIES for codec in family.fields for name in codec.hf]


def each_field(pairs: list[tuple[Family, str]]) -> pytest.MarkDecorator:
    """A family and an HF field that it reads."""
    return pytest.mark.parametrize(
        ("family", "name"), [pytest.param(family, name, id=f"{family.name}-{name}") for family, name in pairs]
    )


def config_of(case: Case, without: str) -> dict[str, Any]:
    """A case's config, but for one field."""
    config = {"model_type": case.model_type, **case.config}
    return {name: value for name, value in config.items() if name != without}


def mapped(config: Mapping[str, Any]) -> object:
    """Megatron's values of it, or that it is refused."""
    record = Record(config, "config.json")
    try:
        return family_of(record).to_mcore(record).values
    except BadInputError:
        return REFUSED


def mapped_as_hf_reads_it(config: dict[str, Any]) -> object:
    """Megatron's values of every field as HF's class holds it, defaults filled in; refused where HF's class refuses."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return mapped(as_transformers_reads(config))
    except StrictDataclassError:
        return REFUSED


@every_case
def test_what_hfs_class_writes_of_itself_maps_to_the_same_values(case: Case) -> None:
    config = config_of(case, without="")

    assert mapped(as_transformers_reads(config)) == mapped(config) != REFUSED


@each_field([pair for pair in PAIRS if (pair[0].name, pair[1]) not in OTHERWISE])
def test_an_absent_field_means_what_hfs_class_takes_for_it_or_is_refused(family: Family, name: str) -> None:
    for case in cases_of(family):
        absent = config_of(case, without=name)

        assert mapped(absent) in (REFUSED, mapped_as_hf_reads_it(absent)), case


@each_field([(family, name) for family, name in PAIRS if name in family.nulls])
def test_an_explicit_null_that_passes_means_what_hfs_class_makes_of_it(family: Family, name: str) -> None:
    for case in cases_of(family):
        null = config_of(case, without=name) | {name: None}

        assert mapped(null) == mapped_as_hf_reads_it(null), case


@each_field([(family, name) for family, name in PAIRS if name not in family.nulls])
def test_any_other_explicit_null_is_refused_by_name(family: Family, name: str) -> None:
    null = config_of(cases_of(family)[0], without=name) | {name: None}

    with pytest.raises(BadInputError, match=f"field '{name}'.*found null"):
        family.to_mcore(Record(null, "config.json"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_page_names_no_null_of_a_field_that_it_does_not_read(family: Family) -> None:
    from worker.mapping.hf_fields import NULLS

    read = {name for codec in family.fields for name in codec.hf}

    assert set(family.nulls) - set(NULLS) <= read
    assert set(NULLS) <= set(family.nulls)
