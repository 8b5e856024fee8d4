"""Adapters and weight streams at TP=2 over NCCL: on a host with two GPUs.

`FERRY_REHEARSE_NCCL=1` runs the same over gloo where there are none: what these tests themselves do wrong shows there.
"""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families.test_adapters import DENSE, LORA, TOKENS, TYPES, laws
from tests.families.test_round_trip import tensors
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.dispatch.gpus import find_gpus

REHEARSED = os.environ.get("FERRY_REHEARSE_NCCL") == "1"
pytestmark = pytest.mark.skipif(len(find_gpus()) < 2 and not REHEARSED, reason="two GPUs that speak NCCL")
TP2 = pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"tp_size": 2, "sp": 1}], ids=["TP2", "TP2-SP"])


@pytest.fixture(scope="module")
def gpu_ranks() -> Iterator[Ranks]:
    """Two ranks with a GPU each."""
    with closing(Ranks(2, backend="nccl" if len(find_gpus()) >= 2 else "gloo")) as ranks:
        yield ranks


@TYPES
@TP2
def test_adapters_add_nothing_at_first_and_fold_in(
    workshop: Workshop, gpu_ranks: Ranks, peft_type: str, sizes: dict[str, int]
) -> None:
    peft, root = {**LORA, "type": peft_type}, workshop.imported(DENSE)

    laws(
        gpu_ranks.run("tests.megatron.adapters:logits_with_adapters", root=root, peft=peft, tokens=TOKENS, sizes=sizes)
    )


@TP2
def test_a_step_changes_adapters_alone(
    workshop: Workshop, gpu_ranks: Ranks, target: Path, sizes: dict[str, int]
) -> None:
    answers = gpu_ranks.run(
        "tests.megatron.adapters:trained",
        root=workshop.imported(DENSE),
        target=target,
        peft=LORA,
        tokens=TOKENS,
        sizes=sizes,
    )

    for changed, _ in answers:
        assert changed
        assert all(".adapter." in name for name in changed)


def test_an_adapter_saved_at_tp_2_loads_at_tp_1_without_a_gpu(
    workshop: Workshop, gpu_ranks: Ranks, megatron: Ranks, tmp_path: Path
) -> None:
    peft: dict[str, Any] = {**LORA, "lora_B_init_method": "normal"}
    root, two, one = workshop.imported(DENSE), tmp_path / "two", tmp_path / "one"
    gpu_ranks.run("tests.megatron.adapters:saved_fresh", root=root, target=two, peft=peft, sizes={"tp_size": 2})

    megatron.run("tests.megatron.adapters:saved_again", root=root, source=two, target=one, peft=peft, sizes={})

    [saved], [again] = (megatron.run("tests.megatron.adapters:saved_tensors", path=path) for path in (two, one))
    assert saved.keys() == again.keys()
    assert all(np.array_equal(saved[name], again[name]) for name in saved)


def test_streams_fill_and_give_back(workshop: Workshop, gpu_ranks: Ranks) -> None:
    root, source = workshop.imported(DENSE), workshop.source(DENSE)

    for loaded, filled in gpu_ranks.run("tests.megatron.streams:filled", root=root, source=source, tp_size=2):
        assert filled == loaded
    for found in gpu_ranks.run("tests.megatron.streams:streamed", root=root, tp_size=2):
        assert dict(found) == tensors(source)
