"""What a trainer calls around its model: configs with the sizes there are, checkpoints at a path, value heads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families.case import BY_NAME
from tests.families.test_adapters import DENSE, LORA, MOE, TOKENS, TYPES
from tests.families.test_logits import TOLERANCE
from tests.families.test_round_trip import tensors
from tests.families.workshop import Workshop
from tests.megatron.ranks import RankError, Ranks


@pytest.mark.slow
def test_sizes_come_from_the_groups_and_overrides_win(workshop: Workshop, two_ranks: Ranks) -> None:
    root = workshop.imported(DENSE)

    [tp, _] = two_ranks.run(
        "tests.megatron.trainers:configured",
        root=root,
        tp_size=2,
        pp_size=1,
        overrides={"sequence_parallel": True, "seq_length": 64, "context_parallel_size": 2},
    )
    [pp, _] = two_ranks.run("tests.megatron.trainers:configured", root=root, tp_size=1, pp_size=2, overrides={})

    assert tp["tensor_model_parallel_size"] == tp["expert_tensor_parallel_size"] == 2
    assert tp["pipeline_model_parallel_size"] == 1
    assert tp["virtual_pipeline_model_parallel_size"] is None
    assert (tp["bf16"], tp["fp16"], tp["dtypes"][0]) == (True, False, "torch.bfloat16")
    assert (tp["context_parallel_size"], tp["sequence_parallel"], tp["seq_length"]) == (2, True, 64)
    assert (tp["hooks saw"], tp["before"]) == ([2], 1)
    assert (pp["pipeline_model_parallel_size"], pp["dtypes"][1]) == (2, "torch.bfloat16")


def test_an_unknown_override_is_an_attribute_error(workshop: Workshop, megatron: Ranks) -> None:
    root = workshop.imported(DENSE)

    with pytest.raises(RankError, match="AttributeError: override 'hidden_sise'"):
        megatron.run(
            "tests.megatron.trainers:configured", root=root, tp_size=1, pp_size=1, overrides={"hidden_sise": 8}
        )


def test_a_checkpoint_at_a_path_loads_with_its_optimizer(workshop: Workshop, megatron: Ranks, target: Path) -> None:
    root = workshop.imported(DENSE)
    megatron.run("tests.megatron.trainers:saved", root=root, target=target, sizes={})

    [(common, same, moment)] = megatron.run("tests.megatron.trainers:loaded", root=root, source=target, sizes={})

    assert common == {"iteration": 7, "note": "kept"}
    assert same
    assert moment == pytest.approx(0.05)  # one step of a gradient of 0.5 at beta1 = 0.9


def test_a_checkpoint_never_goes_into_a_folder_with_files(workshop: Workshop, megatron: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")

    with pytest.raises(RankError, match=r"ValueError: checkpoint .*: found a folder with files"):
        megatron.run("tests.megatron.trainers:saved", root=workshop.imported(DENSE), target=tmp_path, sizes={})


@pytest.mark.slow
def test_a_checkpoint_at_a_path_loads_at_other_sizes(
    workshop: Workshop, megatron: Ranks, two_ranks: Ranks, target: Path
) -> None:
    root = workshop.imported(DENSE)
    two_ranks.run("tests.megatron.trainers:saved", root=root, target=target, sizes={"tp_size": 2})

    [(_, same, moment)] = megatron.run("tests.megatron.trainers:loaded", root=root, source=target, sizes={})

    assert same
    assert moment == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_a_value_model_gives_one_value_a_token(workshop: Workshop, megatron: Ranks, name: str) -> None:
    [(values, head, saved)] = _values(workshop, megatron, name, {})

    assert values.shape == (2, len(TOKENS[0]), 1)
    assert values.dtype == np.float32
    assert head == ["output_layer.weight", "output_layer.bias"]
    assert saved


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"tp_size": 2, "sp": 1}], ids=["TP2", "SP"])
def test_parallel_ranks_give_the_same_values(
    workshop: Workshop, megatron: Ranks, two_ranks: Ranks, sizes: dict[str, int]
) -> None:
    [(reference, *_)] = _values(workshop, megatron, "tied", {})

    for values, *_ in _values(workshop, two_ranks, "tied", sizes):
        assert np.abs(values - reference).max() < TOLERANCE * np.abs(reference).max()


def test_a_frozen_router_does_not_train(workshop: Workshop, megatron: Ranks) -> None:
    [(frozen, trained)] = megatron.run("tests.megatron.trainers:frozen", root=workshop.imported(MOE))

    assert frozen
    assert all(".mlp.router." in name for name in frozen)
    assert trained > len(frozen)


@pytest.mark.slow
@TYPES
def test_megatrons_schedule_trains_adapters_over_two_stages(
    workshop: Workshop, two_ranks: Ranks, peft_type: str
) -> None:
    answers = two_ranks.run(
        "tests.megatron.trainers:trained_in_a_pipeline",
        root=workshop.imported(DENSE),
        peft={**LORA, "type": peft_type},
        tokens=TOKENS,
    )

    for changed, _ in answers:
        assert changed
        assert all(".adapter." in name for name in changed)


def test_a_built_model_is_filled_adapted_and_streamed(workshop: Workshop, megatron: Ranks) -> None:
    _refit(workshop, megatron, DENSE, 1, None)


@pytest.mark.slow
def test_virtual_stages_are_filled_adapted_and_streamed(workshop: Workshop, two_ranks: Ranks) -> None:
    assert _refit(workshop, two_ranks, BY_NAME["qwen3-moe-dense-first"], 2, 2) == 2


def _refit(workshop: Workshop, ranks: Ranks, case: Any, pp_size: int, vpp_size: int | None) -> int:
    """The chunks of a rank, where what it streams is HF's, and changes with adapters folded in."""
    peft = {**LORA, "lora_B_init_method": "normal"}
    sources = {"root": workshop.imported(case), "source": workshop.source(case)}
    answers = ranks.run("tests.megatron.trainers:refit", **sources, peft=peft, pp_size=pp_size, vpp_size=vpp_size)

    expected = tensors(workshop.source(case))
    for answer in answers:
        assert {name: value.tobytes() for name, value in answer["plain"].items()} == {
            name: bits for name, (_, _, bits) in expected.items()
        }
        moved = {name for name, value in answer["merged"].items() if not np.array_equal(value, answer["plain"][name])}
        projections = {name for name in expected if name.endswith("_proj.weight")}
        assert moved == projections
    return answers[0]["chunks"]


def _values(workshop: Workshop, ranks: Ranks, name: str, sizes: dict[str, int]) -> Any:
    root = workshop.imported(BY_NAME[name])
    return ranks.run("tests.megatron.trainers:values", root=root, tokens=TOKENS, sizes=sizes)
