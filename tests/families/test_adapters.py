"""Adapters beside Megatron's layers: they add nothing at first, train alone, fold in, and load at any parallelism."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.families.case import BY_NAME
from tests.families.test_logits import TOLERANCE, difference
from tests.families.workshop import Workshop
from tests.jobs_here import do
from tests.megatron.ranks import Ranks
from worker.jobs.spec import AdapterExportSpec, AdapterUse, MergeSpec

NOWHERE = Path("/nowhere")
DENSE, MOE = BY_NAME["gqa"], BY_NAME["qwen3-moe"]
TOKENS = [[(7 * place * (row + 1)) % 257 for place in range(16)] for row in range(2)]
LORA: dict[str, Any] = {"type": "lora", "rank": 4, "alpha": 2}
TYPES = pytest.mark.parametrize("peft_type", ["lora", "canonical_lora", "dora"])
SIZES = pytest.mark.parametrize(
    "sizes", [{"tp_size": 2}, {"tp_size": 2, "sp": 1}, {"pp_size": 2}], ids=["TP2", "TP2-SP", "PP2"]
)
MOE_SIZES = pytest.mark.parametrize(
    "sizes",
    [{"tp_size": 2, "sp": 1}, {"ep_size": 2}, {"tp_size": 2, "sp": 1, "ep_size": 2, "etp_size": 1}],
    ids=["TP2-ETP2", "EP2", "TP2-EP2"],
)


def laws(answers: list[dict[str, Any]]) -> None:
    """Of what `logits_with_adapters` gives on each rank."""
    for answer in (answer for answer in answers if answer["base"] is not None):
        assert np.array_equal(answer["fresh"], answer["base"])
        assert difference(answer["moved"], answer["base"]) > 100 * TOLERANCE
        # fp32 sums in another order: (W + s B A) x for W x + s B (A x).
        assert difference(answer["merged"], answer["moved"]) < TOLERANCE
    assert all(answer["kept"] for answer in answers)


@TYPES
@pytest.mark.parametrize("case", [DENSE, BY_NAME["all-biases"]], ids=str)
def test_adapters_add_nothing_at_first_and_fold_in(
    workshop: Workshop, megatron: Ranks, case: Any, peft_type: str
) -> None:
    peft = {**LORA, "type": peft_type}

    laws(_logits(workshop, megatron, case, peft, {}))


ROUTED = {**LORA, "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "router"]}


@pytest.mark.parametrize("peft", [ROUTED, {**LORA, "type": "canonical_lora"}], ids=["lora", "canonical"])
def test_experts_and_routers_have_adapters(
    workshop: Workshop, megatron: Ranks, megatron_with_transformer_engine: Ranks, peft: dict[str, Any]
) -> None:
    laws(_logits(workshop, megatron, MOE, peft, {}))
    laws(_logits(workshop, megatron_with_transformer_engine, MOE, peft, {}))


@pytest.mark.parametrize("name", ["gemma2", "deepseek-v3"])
def test_norms_after_layers_and_latent_attention_have_adapters(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, name: str
) -> None:
    case = next(case for known, case in BY_NAME.items() if known.startswith(name))
    latent = ["linear_q_proj", "linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj"]
    peft = {**LORA, "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", *latent]}

    laws(_logits(workshop, megatron_with_transformer_engine, case, peft, {}))


@pytest.mark.slow
@TYPES
@SIZES
def test_parallel_ranks_add_nothing_at_first_and_fold_in(
    workshop: Workshop, two_ranks: Ranks, peft_type: str, sizes: dict[str, int]
) -> None:
    laws(_logits(workshop, two_ranks, DENSE, {**LORA, "type": peft_type}, sizes))


@pytest.mark.slow
@MOE_SIZES
def test_parallel_experts_add_nothing_at_first_and_fold_in(
    workshop: Workshop, two_ranks: Ranks, sizes: dict[str, int]
) -> None:
    laws(_logits(workshop, two_ranks, MOE, ROUTED, sizes))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"ep_size": 2}], ids=["TP2-ETP2", "EP2"])
def test_parallel_grouped_experts_add_nothing_at_first_and_fold_in(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, sizes: dict[str, int]
) -> None:
    laws(_logits(workshop, two_ranks_with_transformer_engine, MOE, ROUTED, sizes))


@TYPES
def test_a_step_changes_adapters_alone(workshop: Workshop, megatron: Ranks, target: Path, peft_type: str) -> None:
    [(changed, kept)] = _train(workshop, megatron, DENSE, {**LORA, "type": peft_type}, {}, target)

    assert changed
    assert all(".adapter." in name for name in changed)
    assert not any(".adapter.linear_out" in name or ("adapter_" in name and "linear_out" in name) for name in kept)
    assert any(".to_wrap." in name for name in kept)


@pytest.mark.slow
@TYPES
@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"tp_size": 2, "sp": 1}], ids=["TP2", "TP2-SP"])
def test_ranks_train_the_adapter_that_one_rank_trains(
    workshop: Workshop, megatron: Ranks, two_ranks: Ranks, tmp_path: Path, peft_type: str, sizes: dict[str, int]
) -> None:
    peft = {**LORA, "type": peft_type, "lora_B_init_method": "normal"}

    _same_training(workshop, megatron, two_ranks, DENSE, peft, sizes, tmp_path)


@pytest.mark.slow
@MOE_SIZES
def test_ranks_train_the_experts_adapters_that_one_rank_trains(
    workshop: Workshop, megatron: Ranks, two_ranks: Ranks, tmp_path: Path, sizes: dict[str, int]
) -> None:
    _same_training(workshop, megatron, two_ranks, MOE, {**ROUTED, "lora_B_init_method": "normal"}, sizes, tmp_path)


@TYPES
@pytest.mark.parametrize("case", [DENSE, MOE], ids=str)
def test_what_a_trainer_saved_is_merged_as_its_export(
    workshop: Workshop, megatron: Ranks, tmp_path: Path, case: Any, peft_type: str
) -> None:
    base, saved, peft = workshop.source(case), tmp_path / "saved", tmp_path / "peft"
    fields = {**(ROUTED if case is MOE and peft_type == "lora" else LORA), "type": peft_type}
    fields["lora_B_init_method"] = "normal"
    root = workshop.imported(case)
    megatron.run("tests.megatron.adapters:saved_fresh", root=root, target=saved, peft=fields, sizes={})

    do(AdapterExportSpec(source=str(saved), target=str(peft), base=str(base)), NOWHERE)
    for adapter in (saved, peft):
        use = AdapterUse(path=str(adapter))
        do(MergeSpec(source=str(base), target=f"{adapter}-merged", adapters=(use,)), NOWHERE)

    ours, theirs = (load_file(tmp_path / f"{of}-merged" / "model.safetensors") for of in ("saved", "peft"))
    before = load_file(base / "model.safetensors")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    changed = {name.rsplit(".", 2)[1] for name in before if not np.array_equal(ours[name], before[name])}
    assert changed >= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.slow
@TYPES
@pytest.mark.parametrize("case", [DENSE, MOE], ids=str)
def test_an_adapter_saved_at_tp_2_loads_at_tp_1_bit_for_bit(
    workshop: Workshop, megatron: Ranks, two_ranks: Ranks, tmp_path: Path, case: Any, peft_type: str
) -> None:
    peft = {**LORA, "type": peft_type, "lora_B_init_method": "normal"}
    root, two, one = workshop.imported(case), tmp_path / "two", tmp_path / "one"
    two_ranks.run("tests.megatron.adapters:saved_fresh", root=root, target=two, peft=peft, sizes={"tp_size": 2})

    megatron.run("tests.megatron.adapters:saved_again", root=root, source=two, target=one, peft=peft, sizes={})

    saved, again = (_tensors(megatron, path) for path in (two, one))
    assert saved.keys() == again.keys()
    assert all(np.array_equal(saved[name], again[name]) for name in saved)


def test_grouped_experts_share_a_checkpoint_with_experts_of_their_own(
    workshop: Workshop, megatron: Ranks, megatron_with_transformer_engine: Ranks, tmp_path: Path
) -> None:
    peft = {**LORA, "lora_B_init_method": "normal"}
    root, own, grouped = workshop.imported(MOE), tmp_path / "own", tmp_path / "grouped"
    megatron.run("tests.megatron.adapters:saved_fresh", root=root, target=own, peft=peft, sizes={})

    megatron_with_transformer_engine.run(
        "tests.megatron.adapters:saved_again", root=root, source=own, target=grouped, peft=peft, sizes={}
    )

    saved, again = (_tensors(megatron, path) for path in (own, grouped))
    assert saved["decoder.layers.mlp.experts.experts.linear_fc1.adapter.linear_in.weight"].shape[1] == MOE.experts
    assert saved.keys() == again.keys()
    assert all(np.array_equal(saved[name], again[name]) for name in saved)


def test_names_are_megatron_bridges(workshop: Workshop, megatron: Ranks) -> None:
    root, layer = workshop.imported(DENSE), "decoder.layers.0.self_attention.linear_qkv"
    names = {
        peft_type: megatron.run("tests.megatron.adapters:names", root=root, peft={**LORA, "type": peft_type}, sizes={})
        for peft_type in ("lora", "canonical_lora", "dora")
    }

    [(parameters, keys)] = names["lora"]
    assert {f"{layer}.to_wrap.weight", f"{layer}.adapter.linear_in.weight", f"{layer}.adapter.linear_out.weight"} <= {
        *parameters
    }
    assert f"{layer}.weight" in keys  # a base checkpoint goes on loading
    [(parameters, _)] = names["canonical_lora"]
    for part in ("adapter_q", "adapter_k", "adapter_v"):
        assert f"{layer}.adapter.{part}.linear_out.weight" in parameters
    assert "decoder.layers.0.mlp.linear_fc1.adapter.adapter_gate.linear_in.weight" in parameters
    [(parameters, _)] = names["dora"]
    assert f"{layer}.adapter.weight_magnitude" in parameters


def _same_training(
    workshop: Workshop,
    one_rank: Ranks,
    two_ranks: Ranks,
    case: Any,
    peft: dict[str, Any],
    sizes: dict[str, int],
    folder: Path,
) -> None:
    """A step on two ranks gives the adapter that it gives on one."""
    before, one, two = folder / "before", folder / "one", folder / "two"
    root = workshop.imported(case)
    one_rank.run("tests.megatron.adapters:saved_fresh", root=root, target=before, peft=peft, sizes={})
    _train(workshop, one_rank, case, peft, {}, one)
    _train(workshop, two_ranks, case, peft, sizes, two)

    start, alone, together = (_tensors(one_rank, path) for path in (before, one, two))
    assert start.keys() == alone.keys() == together.keys()
    for name, value in alone.items():
        step = np.abs(value - start[name]).max()
        assert step > 0, name
        # fp32 sums in another order, and the sums over ranks: small beside the step itself.
        assert np.abs(together[name] - value).max() < 1e-3 * step, name


def _train(workshop: Workshop, ranks: Ranks, case: Any, peft: dict[str, Any], sizes: dict[str, int], to: Path) -> Any:
    root = workshop.imported(case)
    return ranks.run("tests.megatron.adapters:trained", root=root, target=to, peft=peft, tokens=TOKENS, sizes=sizes)


def _tensors(ranks: Ranks, path: Path) -> dict[str, np.ndarray]:
    return ranks.run("tests.megatron.adapters:saved_tensors", path=path)[0]


def _logits(workshop: Workshop, ranks: Ranks, case: Any, peft: dict[str, Any], sizes: dict[str, int]) -> Any:
    root = workshop.imported(case)
    return ranks.run("tests.megatron.adapters:logits_with_adapters", root=root, peft=peft, tokens=TOKENS, sizes=sizes)
