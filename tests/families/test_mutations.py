"""The laws have teeth: whatever is taken out of a page, or swapped in it, some law fails."""

import json
import shutil
from pathlib import Path

import pytest

from tests.families.case import Case, cases_of, logits
from tests.families.mutations import Mutant, mutants
from tests.families.selection import every_case
from tests.families.test_config import lost_fields
from tests.families.test_logits import TOLERANCE, difference
from tests.families.test_mtp import mtp_difference
from tests.families.workshop import Workshop
from tests.megatron.ranks import RankError, Ranks
from worker.jobs.errors import FerryError
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES, family_of

every_mutant = pytest.mark.parametrize("mutant", [mutant for family in FAMILIES for mutant in mutants(family)], ids=str)


@pytest.mark.slow
@every_mutant
def test_a_mutant_breaks_a_law(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, mutant: Mutant, tmp_path: Path
) -> None:
    cases = cases_of(mutant.family)

    assert says_the_same(workshop, mutant, cases, tmp_path) or any(
        breaks_the_config_law(workshop, mutant, case)
        or breaks_a_law_of_tensors(workshop, megatron_with_transformer_engine, mutant, case, tmp_path / case.name)
        for case in cases
    )


def says_the_same(workshop: Workshop, mutant: Mutant, cases: tuple[Case, ...], folder: Path) -> bool:
    """No mutant at all: what was taken out is what upstream's class assumes anyway, and every import stays as it is."""
    return all(_same_import(workshop, mutant, case, folder / "same" / case.name) for case in cases)


def _same_import(workshop: Workshop, mutant: Mutant, case: Case, target: Path) -> bool:
    target.parent.mkdir(exist_ok=True)
    try:
        workshop.import_as(mutant.family, case, target)
    except (FerryError, KeyError):
        return False
    roots = (target, workshop.imported(case))
    manifests = [json.loads((root / "manifest.json").read_text()) for root in roots]
    configs = [(root / "model_config.json").read_text() for root in roots]
    return configs[0] == configs[1] and manifests[0]["plan_digest"] == manifests[1]["plan_digest"]


@every_case
def test_a_page_as_it_is_breaks_none(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, case: Case, tmp_path: Path
) -> None:
    page = Mutant("as it is", family_of(Record({"model_type": case.model_type}, case.name)))

    assert not breaks_the_config_law(workshop, page, case)
    assert not breaks_a_law_of_tensors(workshop, megatron_with_transformer_engine, page, case, tmp_path / "mcore")


def breaks_the_config_law(workshop: Workshop, mutant: Mutant, case: Case) -> bool:
    """A field of HF's is refused, or its value does not come back."""
    hf = Record(json.loads((workshop.source(case) / "config.json").read_text()), "config.json")
    try:
        values = mutant.family.to_mcore(hf)
        again = mutant.family.to_mcore(mutant.family.to_hf(values))
        return again.values != values.values or bool(lost_fields(mutant.family, hf))
    except (FerryError, KeyError):
        return True


def breaks_a_law_of_tensors(workshop: Workshop, megatron: Ranks, mutant: Mutant, case: Case, target: Path) -> bool:
    """It cannot be planned, or Megatron misses a tensor, or gives other logits."""
    try:
        root = workshop.import_as(mutant.family, case, target)
    except (FerryError, KeyError):
        return True
    try:
        [ours] = megatron.run("tests.megatron.model:logits", root=root, tokens=case.tokens)
        if case.add and mtp_difference(megatron, root, workshop.source(case), case) > 10 * TOLERANCE:
            return True
    except RankError:
        return True
    finally:
        shutil.rmtree(target)
    return bool(difference(ours, logits(workshop.source(case), case.tokens).numpy()) > 10 * TOLERANCE)
