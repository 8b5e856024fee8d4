"""Configs of models that people run: each maps, comes back and plans, or is refused with a named reason."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.bindings import Model, bindings
from worker.mapping.plan import plan_import
from worker.mapping.quantization import FIELDS as QUANTIZED
from worker.mapping.record import Record
from worker.mapping.registry import family_of

OPS = Path(__file__).parents[2] / "ops"

# This list may only grow.
MAPPED: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Info:
    """What a safetensors header would say."""

    dtype: str
    shape: tuple[int, ...]


@pytest.fixture(scope="session")
def configs() -> dict[str, dict[str, Any]]:
    """The content of each config.json, by model."""
    sys.path.insert(0, str(OPS))
    from real_configs import real_configs

    folder: Path = real_configs()
    suffix = "_config.json"
    found = {path.name.removesuffix(suffix): json.loads(path.read_text()) for path in folder.rglob(f"*{suffix}")}
    return {name: config for name, config in sorted(found.items()) if not name.endswith("_hf_quant")}


def outcome(name: str, config: dict[str, Any]) -> tuple[bool, str]:
    """Whether it maps, and its family or the reason."""
    hf = Record(config, name)
    try:
        family = family_of(hf)
        values = family.to_mcore(hf)
    except BadInputError as error:
        return False, str(error).removeprefix(f"{name}: ")
    assert family.to_mcore(family.to_hf(values)).values == values.values
    unquantized = Record({key: value for key, value in config.items() if key not in QUANTIZED}, name)
    model = Model(family=family, hf=unquantized, mcore=values)
    plan = plan_import(model, tensors(model))
    assert plan.tasks
    return True, f"{family.name}, {len(plan.tasks):,} tasks"


def tensors(model: Model) -> dict[str, Info]:
    """Every HF tensor that the rules ask for; one stack of experts is written once."""
    return dict(_tensors(model))


def _tensors(model: Model) -> Iterator[tuple[str, Info]]:
    for binding in bindings(model):
        for part in binding.parts:
            yield part.source.name, Info("BF16", (*part.stack, *part.shape))


@pytest.mark.slow
def test_every_real_config_maps_or_is_refused_by_name(
    configs: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {name: outcome(name, config) for name, config in configs.items()}

    with capsys.disabled():
        print(f"\n{sum(maps for maps, _ in outcomes.values())} of {len(outcomes)} configs map")
        for name, (maps, what) in outcomes.items():
            print(f"  {'maps   ' if maps else 'refused'}  {name:60} {what[:90]}")
    mapped = {name: what.partition(",")[0] for name, (maps, what) in outcomes.items() if maps}
    assert mapped.items() >= MAPPED.items()
    assert all(what for _, what in outcomes.values())


def test_at_least_thirty_are_pinned() -> None:
    assert len(MAPPED) >= 30
