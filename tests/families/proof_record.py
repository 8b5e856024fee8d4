"""With `--record-proofs`, a whole run of the families' tests writes what it proved to worker/mapping/proofs.json."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pytest

from worker.mapping.family import Family
from worker.mapping.proofs import LAWS, RECORD, page_digest
from worker.mapping.record import Record
from worker.mapping.registry import FAMILIES, family_of

OPTION = "--record-proofs"
DIFFERENCE = "logits_difference"
FAMILY, LAW = "family", "law"

# Test module (and the beginning of the test's name, where a module serves two laws) -> law.
_LAW_OF = {
    "test_config": "config",
    "test_config_table": "config",
    "test_absent_and_null": "config",
    "test_inventory": "tensors",
    "test_round_trip": "round trip",
    "test_logits": "logits",
    "test_mtp": "logits",
    "test_mutations": "mutants",
}
_PARALLEL = ("test_parallel_ranks", "test_experts_on_two_ranks")


@dataclass(slots=True, eq=False)
class ProofRecord:
    """Counts what passed; a family with a failure is left out of the record."""

    passed: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: dict.fromkeys(LAWS, 0)))
    failed: set[str] = field(default_factory=set[str])
    largest: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Say with each report whose law it was."""
        family, law = _family_of(item), _law_of(item)
        if family and law:
            item.user_properties += [(FAMILY, family.name), (LAW, law)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test."""
        said = dict(report.user_properties)
        if FAMILY not in said:
            return
        family, law = str(said[FAMILY]), str(said[LAW])
        if report.failed:
            self.failed.add(family)
        if report.when == "call" and report.passed:
            self.passed[family][law] += 1
            if isinstance(found := said.get(DIFFERENCE), float):
                self.largest[family] = max(self.largest[family], found)

    def pytest_sessionfinish(self) -> None:
        """Write the record; what it says of families that did not run stays."""
        families = {
            family.name: {
                "page": page_digest(family),
                "passed": {law: count for law, count in self.passed[family.name].items() if count},
                "largest_difference": self.largest.get(family.name),
            }
            for family in FAMILIES
            if family.name in self.passed and family.name not in self.failed
        }
        earlier = json.loads(RECORD.read_text())["families"] if RECORD.exists() else {}
        kept = {name: found for name, found in earlier.items() if name not in self.passed and name not in self.failed}
        versions = {name: version(name) for name in ("megatron-core", "transformers", "torch")}
        RECORD.write_text(json.dumps({"versions": versions, "families": kept | families}, indent=1) + "\n")


def _family_of(item: pytest.Item) -> Family | None:
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    if "case" in parameters:
        return family_of(Record({"model_type": parameters["case"].model_type}, item.name))
    if "mutant" in parameters:
        return parameters["mutant"].family
    found = parameters.get("family")
    return found if isinstance(found, Family) else None


def _law_of(item: pytest.Item) -> str | None:
    if item.name.startswith(_PARALLEL):
        return "parallel"
    return _LAW_OF.get(item.path.stem)
