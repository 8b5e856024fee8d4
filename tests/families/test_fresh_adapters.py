"""The adapter that a setup leaves: trainers load it at any parallelism, and it is what was written."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.families.case import BY_NAME
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.jobs.setup_spec import PeftSettings, SetupSpec
from worker.jobs.spec_fields import LayerKeys


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "layer_keys"),
    [
        ("gqa", "lora", "stacked"),
        ("gqa", "canonical_lora", "stacked"),
        ("gqa", "dora", "stacked"),
        ("gqa", "dora", "per-layer"),
        ("qwen3-moe", "lora", "stacked"),
        ("qwen3-moe", "lora", "per-layer"),
        ("qwen3-moe", "canonical_lora", "stacked"),
    ],
)
def test_ranks_load_a_fresh_adapter(
    workshop: Workshop,
    megatron: Ranks,
    two_ranks: Ranks,
    tmp_path: Path,
    name: str,
    kind: str,
    layer_keys: LayerKeys,
) -> None:
    root, adapter = tmp_path / "run", tmp_path / "run/adapter/release"
    peft = PeftSettings.model_validate({"type": kind, "dim": 4, "alpha": 8, "init_adapter": True})
    source = str(workshop.source(BY_NAME[name]))

    spec = SetupSpec(source=source, target=str(root), profile="megatron-bridge", peft=peft, layer_keys=layer_keys)
    workshop.run(spec)

    settings = json.loads((root / "peft_config.json").read_text())
    [written] = megatron.run("tests.megatron.adapters:saved_tensors", path=adapter)
    assert any(values.any() for values in written.values())
    for number, (ranks, sizes) in enumerate(((megatron, {}), (two_ranks, {"tp_size": 2, "sp": 1}))):
        again = tmp_path / f"again-{number}"
        ranks.run(
            "tests.megatron.adapters:saved_again", root=root, source=adapter, target=again, peft=settings, sizes=sizes
        )
        [saved] = megatron.run("tests.megatron.adapters:saved_tensors", path=again)
        loaded = by_layer(saved) if layer_keys == "per-layer" else saved
        assert loaded.keys() == written.keys()
        assert all(np.array_equal(loaded[key], written[key]) for key in written)


def by_layer(stacks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each layer's part under a name of its own."""
    start = "decoder.layers."
    return {
        name.replace(start, f"{start}{layer}."): part
        for name, stack in stacks.items()
        for layer, part in enumerate(stack)
    }
