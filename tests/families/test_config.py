"""HF's config, mapped to Megatron's values and back, is the config that it was in everything that matters."""

import json
from typing import Any

import pytest

from tests.families.case import Case
from tests.families.selection import every_case
from tests.families.workshop import Workshop
from worker.jobs.errors import BadInputError
from worker.mapping.family import Family
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES, family_of


def as_transformers_reads(config: dict[str, Any]) -> dict[str, Any]:
    """Every field of HF's own class for this config.json, defaults filled in."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**json.loads(json.dumps(config), object_hook=_float)).to_dict()


def _float(written: dict[str, Any]) -> Any:
    """JSON has no infinity; transformers writes an object for it."""
    return float(written["__float__"]) if "__float__" in written else written


def lost_fields(family: Family, hf: Record) -> set[str]:
    """HF fields that the way to Megatron and back changes, as HF's class reads them.

    Several fields of one meaning (rope, windows, sparse layers) may be spelled otherwise: the next law holds them.
    """
    back = family.to_hf(family.to_mcore(hf))
    spelled_freely = {name for codec in family.fields if len(codec.hf) > 1 for name in codec.hf}
    skipped = {row.hf_name for row in family.ignored} | spelled_freely
    expected, found = as_transformers_reads(dict(hf.values)), as_transformers_reads(dict(back.values))
    return {name for name in expected.keys() - skipped if name not in found or found[name] != expected[name]}


@every_case
def test_the_config_that_comes_back_is_hfs_own(workshop: Workshop, case: Case) -> None:
    source: dict[str, Any] = json.loads((workshop.source(case) / "config.json").read_text())
    hf = Record(source, "config.json")
    family = family_of(hf)

    assert not lost_fields(family, hf)


@every_case
def test_megatrons_values_survive_the_way_there_and_back(workshop: Workshop, case: Case) -> None:
    hf = Record(json.loads((workshop.source(case) / "config.json").read_text()), "config.json")
    family = family_of(hf)
    values = family.to_mcore(hf)

    assert family.to_mcore(family.to_hf(values)).values == values.values


@every_case
def test_an_unknown_field_is_refused_by_name(workshop: Workshop, case: Case) -> None:
    hf = json.loads((workshop.source(case) / "config.json").read_text())
    family = family_of(Record(hf, "config.json"))

    with pytest.raises(BadInputError, match="attention_is_reversed") as refused:
        family.to_mcore(Record(hf | {"attention_is_reversed": True}, "config.json"))

    assert family.page in str(refused.value)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_field_is_read_by_codecs_or_without_effect_and_never_both(family: Any) -> None:
    read = {name for codec in family.fields for name in codec.hf}
    ignored = [row.hf_name for row in family.ignored]

    assert read.isdisjoint(ignored)
    assert len(ignored) == len(set(ignored))
    assert all(row.why for row in family.ignored)
