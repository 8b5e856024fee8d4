"""Megatron adapters' configs, and rows of a magnitude that only its chunks tell apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.families.case import BY_NAME
from tests.megatron_adapter import fused, split, write_tensors
from worker.adapters.linears import Linear, linears
from worker.adapters.mcore_config import McoreAdapterConfig, read_mcore_config
from worker.adapters.mcore_folder import find_factors
from worker.adapters.to_peft import peft_tensors
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.handlers.config import model_of
from worker.jobs.errors import BadInputError
from worker.mapping.blocks import Task
from worker.mapping.record import Record

MAGNITUDE = "decoder.layers.mlp.linear_fc1.adapter.weight_magnitude"


def layers(name: str = "gqa", **config: object) -> tuple[Linear, ...]:
    case = BY_NAME[name]
    architecture = {"llama": "LlamaForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}[case.model_type]
    values = {"model_type": case.model_type, "architectures": [architecture], **case.config, **config}
    return linears(model_of(Record(values, "test")))


def targeted(of: tuple[Linear, ...], **config: object) -> list[str]:
    read = McoreAdapterConfig.model_validate({"dim": 2, "alpha": 2, **config})
    return [layer.full_name for layer in of if read.targets(layer)]


def test_targets_are_names_or_patterns_of_whole_names() -> None:
    of = layers()

    names = [f"decoder.layers.{number}.self_attention.linear_qkv" for number in range(2)]
    assert targeted(of, target_modules=["linear_qkv"]) == names
    assert targeted(of, target_modules=["*.layers.1.*.linear_fc1"]) == ["decoder.layers.1.mlp.linear_fc1"]
    assert targeted(of, target_modules=["*.layers.1.*.linear_fc1_up"]) == ["decoder.layers.1.mlp.linear_fc1"]
    assert targeted(of, target_modules=["linear_q", "linear_v"]) == names
    assert targeted(of, target_modules=["linear_fc2"], exclude_modules=["*.layers.0.*.linear_fc2"]) == [
        "decoder.layers.1.mlp.linear_fc2"
    ]
    assert targeted(of) == []


def test_layers_of_one_kind_each_are_named_by_their_number() -> None:
    of = layers("qwen3-moe-dense-first")

    names = {layer.full_name for layer in of if layer.leaf == "linear_fc1"}

    assert names == {"decoder.layers.0.mlp.linear_fc1", *(f"decoder.layers.{n}.mlp.experts.linear_fc1" for n in "123")}
    assert {layer.components for layer in of if layer.leaf == "linear_fc1"} == {("gate", "up")}


@pytest.mark.parametrize(
    ("kind", "type"), [("lora.LoRA", "lora"), ("canonical_lora.CanonicalLoRA", "canonical_lora"), ("dora.DoRA", "dora")]
)
def test_megatron_bridges_classes_are_known(tmp_path: Path, kind: str, type: str) -> None:
    section = {"_target_": f"megatron.bridge.peft.{kind}", "dim": 8, "alpha": 16, "lora_dtype": None, "new_field": None}
    (tmp_path / "run_config.yaml").write_text(yaml.safe_dump({"peft": section, "model": {}}))

    assert read_mcore_config(tmp_path, tmp_path).config == McoreAdapterConfig(type=type, dim=8, alpha=16)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"_target_": "megatron.bridge.peft.vera.VeRA", "dim": 8, "alpha": 16}, "VeRA"),
        ({"_target_": "megatron.bridge.peft.lora.LoRA", "dim": 8, "alpha": 16, "new_field": 3}, "new_field"),
        ({"_target_": "megatron.bridge.peft.lora.LoRA", "alpha": 16}, "dim"),
        (None, "no peft_config"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, section: object, says: str) -> None:
    (tmp_path / "run_config.yaml").write_text(yaml.safe_dump({"peft": section}))

    with pytest.raises(BadInputError, match=says):
        read_mcore_config(tmp_path, tmp_path)


def magnitude_tasks(folder: Path, cuts: int) -> list[Task]:
    """The tasks of an export whose gated magnitude lies in so many chunks a layer."""
    write_tensors(folder, fused(3, dora=True))
    weights = TorchDistFolder.open(folder)
    apart = [
        replace(chunk, offsets=(layer, cut * 96 // cuts), sizes=(1, 96 // cuts))
        for chunk in weights.chunks[MAGNITUDE]
        for layer in range(2)
        for cut in range(cuts)
    ]
    weights = replace(weights, chunks={**weights.chunks, MAGNITUDE: apart})
    config = McoreAdapterConfig(type="dora", dim=3, alpha=3)
    found = peft_tensors(find_factors(weights, config, layers(), frozenset()), weights)
    return [task for task in found.plan.tasks if "magnitude" in task.target.name and "layers.1.mlp" in task.target.name]


def rows(task: Task, stack: torch.Tensor) -> torch.Tensor:
    return torch.cat([stack[block.source.index][block.start : block.start + block.rows] for block in task.blocks])


def test_a_gated_magnitude_saved_by_several_ranks_is_put_in_order(tmp_path: Path) -> None:
    """Megatron-Bridge saves it rank by rank, gate and up of each; B it saves gate first."""
    whole = torch.arange(2 * 96.0).reshape(2, 96)
    gate, up = split("mlp.linear_fc1", whole[1]).values()
    as_saved = torch.stack([torch.cat([*by_rank(row)]) for row in whole])

    for cuts, stack in ((1, whole), (2, as_saved)):
        by_name = {task.target.name: task for task in magnitude_tasks(tmp_path / str(cuts), cuts)}
        for leaf, expected in (("gate_proj", gate), ("up_proj", up)):
            name = f"base_model.model.model.layers.1.mlp.{leaf}.lora_magnitude_vector"
            assert torch.equal(rows(by_name[name], stack), expected)


def by_rank(row: torch.Tensor) -> list[torch.Tensor]:
    """gate and up of rank 0, then gate and up of rank 1."""
    gate, up = row.chunk(2)
    return [part for pair in zip(gate.chunk(2), up.chunk(2), strict=True) for part in pair]
