"""PEFT's adapter folders: every field of its configs known, every tensor's name understood, or refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

from worker.adapters.peft_config import ADAPTER_CONFIG, UNMERGEABLE, WITHOUT_EFFECT, PeftConfig, parse_peft_config
from worker.adapters.peft_folder import WEIGHTS, PeftFolder
from worker.jobs.errors import BadInputError


def as_saved(**fields: Any) -> dict[str, Any]:
    """What PEFT's save_pretrained leaves of a LoraConfig."""
    values = LoraConfig(**fields).to_dict()
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()} | {
        "peft_type": "LORA"
    }


def parsed(**fields: Any) -> PeftConfig:
    return parse_peft_config(as_saved(**fields), "test")


def write(folder: Path, tensors: dict[str, tuple[int, ...]], **fields: Any) -> Path:
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(as_saved(**{"r": 4, "target_modules": ["q_proj"], **fields})))
    save_file({f"base_model.model.{name}": torch.randn(shape) for name, shape in tensors.items()}, folder / WEIGHTS)
    return folder


PAIR: dict[str, tuple[int, ...]] = {"m.q_proj.lora_A.weight": (4, 8), "m.q_proj.lora_B.weight": (6, 4)}


def test_every_field_of_pefts_config_is_known() -> None:
    assert parsed(target_modules=["q_proj"]).target_modules == {"q_proj"}
    known = PeftConfig.model_fields.keys() | WITHOUT_EFFECT | UNMERGEABLE.keys() | {"peft_type", "init_lora_weights"}
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= known


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "(["},
        {"exclude_modules": "*a"},
        {"rank_pattern": {"([": 2}},
        {"alpha_pattern": {"([": 2}},
        {"modules_to_save": ["(["]},
        {"layers_pattern": "(["},
    ],
    ids=str,
)
def test_what_is_no_expression_is_refused_by_its_field(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=f"{next(iter(fields))}.*no regular expression"):
        parse_peft_config({**as_saved(), **fields}, "test")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": [1]}, "target_modules.0: found 1, expected text"),
        ({"target_modules": {"a": 1}}, "target_modules: found {'a': 1}, expected a list"),
        ({"layers_to_transform": "x"}, "layers_to_transform: found 'x', expected a"),
    ],
    ids=str,
)
def test_no_type_of_ours_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse_peft_config({**as_saved(), **fields}, "test")

    assert said in str(caught.value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(BadInputError, match="lora_twist: found an unknown field with value 3"):
        parse_peft_config({**as_saved(), "lora_twist": 3}, "test")


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_replication": [[0, 2], [1, 3]]},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"peft_type": "IA3"},
        {"alora_invocation_tokens": [1]},
        {"trainable_token_indices": [1, 2]},
        {"r": 0},
        {"rank_pattern": {"q": -1}},
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_refused_by_its_field(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match=next(iter(fields))) as refused:
        parse_peft_config({**as_saved(), **fields}, "test")

    assert refused.value.info.code == "unsupported_config_value"


def test_scales_are_pefts() -> None:
    module = "model.layers.1.self_attn.q_proj"
    plain = parsed(r=8, lora_alpha=12)
    rs = parsed(r=8, lora_alpha=12, use_rslora=True)
    patterns = parsed(r=8, lora_alpha=12, rank_pattern={r"layers\.1\..*q_proj": 2}, alpha_pattern={"q_proj": 5})

    assert plain.scale(module) == 12 / 8
    assert rs.scale(module) == 12 / 8**0.5
    assert (patterns.rank(module), patterns.scale(module)) == (2, 5 / 2)
    assert patterns.scale("model.layers.0.self_attn.o_proj") == 12 / 8


@pytest.mark.parametrize("keys", [["q_proj"], ["proj"], ["x", "layers.1.q_proj"], [".*q_proj", "q_proj"], ["q_pro"]])
def test_patterns_are_looked_up_as_peft_does(keys: list[str]) -> None:
    config = parsed(r=8, rank_pattern={key: 10 + place for place, key in enumerate(keys)})

    for module in ("layers.1.q_proj", "layers.11.q_proj", "q_proj", "layers.1.k_proj"):
        expected = config.rank_pattern.get(get_pattern_key(keys, module), 8)
        assert config.rank(module) == expected


def test_targets_are_pefts() -> None:
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    names = [f"model.layers.{n}.{m}" for n in range(3) for m in ("attn.q_proj", "attn.k_proj", "mlp.experts.2.up")]
    for fields in (
        {"target_modules": ["q_proj", "up"]},
        {"target_modules": r".*\.[qk]_proj"},
        {"target_modules": ["q_proj", "up"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "up"], "layers_to_transform": 2, "layers_pattern": "layers"},
        {"target_modules": ["model.layers.0.attn.q_proj", "up"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "up"], "exclude_modules": ["attn.q_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.2\..*"},
        {"target_modules": ["q_proj", "k_proj"], "modules_to_save": ["k_proj"]},
        {"target_modules": None, "target_parameters": ["mlp.experts.up"]},
    ):
        config = parsed(**fields)
        for name in names:
            expected = check_target_module_exists(LoraConfig(**fields), name)
            assert config.targets(name) == (bool(expected) and not isinstance(expected, _ExcludedModule)), (
                fields,
                name,
            )


def test_every_name_that_peft_writes_is_understood(tmp_path: Path) -> None:
    folder = PeftFolder.open(
        write(
            tmp_path / "a",
            {
                **PAIR,
                "m.q_proj.lora_magnitude_vector": (6,),
                "m.embed.lora_embedding_A": (4, 50),
                "m.embed.lora_embedding_B": (8, 4),
                "m.embed.lora_magnitude_vector": (8,),
                "lm_head.weight": (50, 8),
                "m.q_proj.base_layer.bias": (6,),
            },
            use_dora=True,
        )
    )

    embed, q_proj = sorted(folder.modules, key=lambda module: module.module)
    assert (q_proj.module, q_proj.nested, q_proj.embedding, q_proj.bias) == ("m.q_proj", 0, False, None)
    assert q_proj.magnitude == "base_model.model.m.q_proj.lora_magnitude_vector"
    assert embed.embedding
    assert embed.magnitude == "base_model.model.m.embed.lora_magnitude_vector"
    assert set(folder.replaced) == {"lm_head.weight", "m.q_proj.bias"}


def test_wrappers_of_several_parameters_are_told_apart(tmp_path: Path) -> None:
    nested = {name.replace("q_proj", "experts.base_layer"): shape for name, shape in PAIR.items()}
    outer = {name.replace("q_proj", "experts"): shape for name, shape in PAIR.items()}

    folder = PeftFolder.open(write(tmp_path / "a", {**nested, **outer}))

    assert {(module.module, module.nested) for module in folder.modules} == {("m.experts", 0), ("m.experts", 1)}


@pytest.mark.parametrize(
    ("tensors", "fields", "found"),
    [
        ({"m.q_proj.lora_A.weight": (4, 8)}, {}, "no factor B"),
        ({**PAIR, "m.q_proj.lora_C.weight": (4, 8)}, {}, "a part of an adapter that is not known"),
        ({**PAIR, "m.q_proj.lora_A.default.weight": (4, 8)}, {}, "the same part as"),
        ({**PAIR, "m.q_proj.lora_B.weight": (6, 5)}, {}, r"shape \[4, 8\], and \[6, 5\] of B"),
        (PAIR, {"use_dora": True}, "no magnitude vector"),
        ({**PAIR, "m.q_proj.lora_magnitude_vector": (6,)}, {}, "a magnitude vector"),
        ({**PAIR, "m.q_proj.lora_magnitude_vector": (5,)}, {"use_dora": True}, r"shape \[5\]"),
        (PAIR, {"lora_bias": True}, "no bias"),
        ({}, {}, "no tensor at all"),
    ],
)
def test_what_is_not_whole_is_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], fields: dict[str, Any], found: str
) -> None:
    with pytest.raises(BadInputError, match=found):
        PeftFolder.open(write(tmp_path / "a", tensors, **fields))


def test_another_prefix_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", PAIR)
    save_file({"model.q_proj.lora_A.weight": torch.zeros(4, 8)}, folder / WEIGHTS)

    with pytest.raises(BadInputError, match="no prefix"):
        PeftFolder.open(folder)


def test_a_pickled_adapter_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", PAIR)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")

    with pytest.raises(BadInputError, match="which is a pickle"):
        PeftFolder.open(folder)
