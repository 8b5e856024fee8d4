"""Where the values of a Megatron config come from, and what was proven of each family, laid out for a person."""

import json
from typing import Any

from .tables import console, table


def print_explained(explained: dict[str, Any]) -> None:
    """One line a Megatron value, then one a field without effect."""
    values = table("Megatron field", "value", "from", "HF fields")
    for line in explained["values"]:
        values.add_row(line["mcore"], _shown(line["value"]), line["origin"], _fields(line["hf"]))
    console().print(values)
    ignored = table("without effect", "value", "why")
    for line in explained["without_effect"]:
        ignored.add_row(line["hf"], _shown(line["value"]), line["why"])
    console().print("")
    console().print(ignored)


def print_families(families: list[dict[str, Any]]) -> None:
    """One line a family: what it is, what it has, and what the tests' own run proved of it."""
    lines = table("family", "HF architectures", "features", "proven", "unproven")
    for family in families:
        lines.add_row(
            family["name"],
            ", ".join(family["architectures"]),
            ", ".join(family["features"]),
            _proven(family["proven"]),
            "; ".join(family["unproven"]),
        )
    console().print(lines)


def _proven(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "nothing on record for this version of its page"
    laws = ", ".join(f"{law} {count}" for law, count in proof["passed"].items() if count)
    difference = proof["largest_difference"]
    return laws if difference is None else f"{laws}; logits within {difference:.1e}"


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in fields.items())


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
