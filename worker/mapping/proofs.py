"""What the tests' own run proved of each family, law by law: `proofs.json`, written by that run and by nothing else."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .family import Family
from .fields import Only

LAWS = ("config", "tensors", "round trip", "logits", "parallel", "mutants")
RECORD = Path(__file__).with_name("proofs.json")
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One family's: `passed` tests by law, and the largest difference of logits as a part of their range."""

    passed: dict[str, int]
    largest_difference: float | None


def page_digest(family: Family) -> str:
    """Of the page's source: a proof is of the page as it was."""
    return hashlib.sha256((_ROOT / family.page).read_bytes()).hexdigest()[:16]


def proof_of(family: Family) -> Proof | None:
    """The record's, or None where it has none for the page as it is now."""
    found = _record().get("families", {}).get(family.name)
    if found is None or found["page"] != _digest_if_there(family):
        return None
    return Proof(passed=found["passed"], largest_difference=found["largest_difference"])


def refused(family: Family) -> tuple[str, ...]:
    """Features that the family's HF class has and its page refuses by name."""
    return tuple(
        f"{codec.hf_name} other than {codec.value!r}: {codec.why}" for codec in family.fields if isinstance(codec, Only)
    )


def unproven(family: Family) -> tuple[str, ...]:
    """Laws that the record says nothing of, and what no test can show."""
    proof = proof_of(family)
    laws = LAWS if proof is None else tuple(law for law in LAWS if not proof.passed.get(law))
    return (*(f"law: {law}" for law in laws), *family.unproven)


def _digest_if_there(family: Family) -> str | None:
    return page_digest(family) if (_ROOT / family.page).exists() else None


@cache
def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}
