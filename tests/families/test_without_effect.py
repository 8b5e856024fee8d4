"""A field that a page names as without effect has none: HF's logits stay what they were, to the last bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.case import cases_of, logits
from tests.families.workshop import Workshop
from worker.mapping.family import Family
from worker.mapping.fields import Ignored
from worker.mapping.registry import FAMILIES

# It chose the class whose logits these are.
CHOOSES_THE_CLASS = ("model_type",)

every_field = pytest.mark.parametrize(
    ("family", "row"),
    [
        pytest.param(family, row, id=f"{family.name}-{row.hf_name}")
        for family in FAMILIES
        for row in family.ignored
        if row.hf_name not in CHOOSES_THE_CLASS
    ],
)


@pytest.mark.slow
@every_field
def test_another_value_leaves_hfs_logits_as_they_are(
    workshop: Workshop, family: Family, row: Ignored, tmp_path: Path
) -> None:
    case = cases_of(family)[0]
    source = workshop.source(case)
    changed = shutil.copytree(source, tmp_path / "changed")
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    value = another(row, config.get(row.hf_name))
    assert value != config.get(row.hf_name)

    (changed / "config.json").write_text(json.dumps(config | {row.hf_name: value}))

    assert torch.equal(logits(changed, case.tokens), logits(source, case.tokens))


def another(row: Ignored, found: object) -> object:
    """A value that is not the one found: the row's own, or one of the same kind."""
    if row.other is not None:
        return row.other
    match found:
        case bool():
            return not found
        case int():
            return found + 1
        case float():
            return found * 2
        case str():
            return found + "-other"
        case list() | dict() | None:
            return OF_ABSENT.get(row.hf_name, 7)
        case _:
            raise AssertionError(f"{row.hf_name}: no other value for {found!r}")


# Values that HF's own class accepts for fields that are absent, null or structured in a written config.
OF_ABSENT: dict[str, object] = {
    "_name_or_path": "somewhere",
    "architectures": ["SomethingElse"],
    "attn_implementation": "sdpa",
    "id2label": {"0": "yes", "1": "no", "2": "maybe"},
    "label2id": {"yes": 0, "no": 1, "maybe": 2},
    "layer_types": None,
    "mtp_layers_block_type": ["full_attention"],
    "problem_type": "regression",
    "time_step_limit": [0.0, 1e308],
    "auto_map": {"AutoConfig": "configuration_other.OtherConfig"},
    "transformers_version": "4.0.0",
}
