"""Merges against PEFT's own, in fp64: LoRA in all its variants, several at once, into either format."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests import quantized_folders
from tests.families.case import BY_NAME, Case, write
from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import adapted, load, merged, write_adapter
from worker.adapters.peft_folder import WEIGHTS
from worker.handlers.context import Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import AdapterUse, ExportSpec, ImportSpec, MergeSpec

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NOWHERE = Path("/nowhere")

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ALL},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"k_proj": 2, r"layers\.1\..*down_proj": 8},
        "alpha_pattern": {"v_proj": 1, "layers.0.self_attn.o_proj": 9},
    },
    "dora": {"target_modules": ALL, "use_dora": True},
    "regex": {"target_modules": r".*\.(q_proj|gate_proj)"},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "one by its whole name": {
        "target_modules": ["model.layers.0.self_attn.q_proj", "k_proj"],
        "layers_to_transform": [1],
    },
    "excluded": {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "fan_in_fan_out": {"target_modules": ["k_proj", "down_proj"], "fan_in_fan_out": True},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_llama(tmp_path / "base", layers=2, hidden=64)
    return tmp_path / "base"


def spec(base: Path, target: Path, *adapters: Path, **fields: Any) -> MergeSpec:
    uses = tuple(AdapterUse(path=str(adapter)) for adapter in adapters)
    return MergeSpec(**{"source": str(base), "target": str(target), "adapters": uses, **fields})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Up to fp32's own precision: theirs are in fp64."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.double(), theirs[name].double(), rtol=2e-6, atol=2e-6, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merge_is_pefts(base: Path, tmp_path: Path, variant: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])

    done = do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert isinstance(done, Prepared)
    assert done.result.touched > 0
    same(tensors(tmp_path / "out"), merged(adapted(base, [adapter]), ["a0"]))


def test_what_an_adapter_does_not_touch_is_copied(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    before, after = tensors(base), tensors(tmp_path / "out")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)
    }
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for name, norm in manifest["touched"].items():
        assert norm == pytest.approx(float((after[name] - before[name]).norm()), rel=1e-4)


@pytest.mark.parametrize("variant", ["dora", "dora embedding", "saved modules", "head", "embedding"])
def test_every_touched_tensor_has_the_norm_of_its_change(base: Path, tmp_path: Path, variant: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    before, after = tensors(base), tensors(tmp_path / "out")
    touched = json.loads((tmp_path / "out" / "manifest.json").read_text())["touched"]
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name for name, norm in touched.items() if norm} == changed
    for name, norm in touched.items():
        assert norm == pytest.approx(float((after[name].double() - before[name].double()).norm()), rel=1e-4, abs=1e-5)


def case(name: str, folder: Path, **config: object) -> Path:
    """A tiny random model of a family."""
    write(replace(BY_NAME[name], config={**BY_NAME[name].config, **config}), folder)
    return folder


BIASES: dict[str, dict[str, Any]] = {
    "bias all": {"target_modules": ["q_proj"], "bias": "all"},
    "bias lora_only": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
    "lora_bias": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
}


@pytest.mark.parametrize("variant", BIASES)
def test_biases_are_pefts(tmp_path: Path, variant: str) -> None:
    base = case("qwen2", tmp_path / "base", tie_word_embeddings=False)
    adapter = write_adapter(base, tmp_path / "adapter", **BIASES[variant])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    same(tensors(tmp_path / "out"), merged(adapted(base, [adapter]), ["a0"]))


def test_a_bias_needs_one_in_the_base(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], lora_bias=True)

    with pytest.raises(BadInputError, match="while the base has none"):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "olmoe", "gpt-oss", "gpt-oss-yarn-oblong"])
@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[1:]], ids=["both", "one"])
def test_experts_are_pefts(tmp_path: Path, name: str, parameters: list[str]) -> None:
    base = case(name, tmp_path / "base")
    fields = {"target_parameters": parameters, "target_modules": ["q_proj"]}
    adapter = write_adapter(base, tmp_path / "adapter", **fields, alpha_pattern={"mlp.experts.down_proj": 3})

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    theirs: Any = adapted(base, [adapter]).merge_and_unload()
    ours: Any = load(tmp_path / "out")
    same(dict(ours.state_dict()), dict(theirs.state_dict()))


PROJECTIONS = {"qwen3-moe": ["gate_proj", "up_proj", "down_proj"], "mixtral": ["w1", "w2", "w3"]}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_experts_adapted_one_by_one_are_pefts(tmp_path: Path, name: str) -> None:
    """As transformers 4 had them, a module for each expert; PEFT now fuses their factors when it loads them."""
    base, adapter = case(name, tmp_path / "base"), tmp_path / "adapter"
    targets = [*PROJECTIONS[name], "q_proj"]
    torch.manual_seed(5)
    factors = {
        f"base_model.model.{stored.removesuffix('.weight')}.lora_{part}.weight": 0.1 * torch.randn(*shape)
        for stored, tensor in tensors(base).items()
        if stored.split(".")[-2] in targets
        for part, shape in (("A", (4, tensor.shape[1])), ("B", (tensor.shape[0], 4)))
    }
    adapter.mkdir()
    save_file(factors, adapter / WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    ours: Any = load(tmp_path / "out")
    same(dict(ours.state_dict()), dict(adapted(base, [adapter]).merge_and_unload().state_dict()))


def test_layers_that_hf_does_not_load_need_no_factors(tmp_path: Path) -> None:
    base = case("glm4-moe-mtp", tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    before, after = tensors(base), tensors(tmp_path / "out")
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(layers)}


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_what_multi_token_prediction_shares_stays_shared(tmp_path: Path, warm_model_configs: Path, module: str) -> None:
    base = case("glm4-moe-mtp", tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=[module])
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore")), warm_model_configs)

    do(spec(base, tmp_path / "out", adapter), NOWHERE)
    do(spec(tmp_path / "mcore", tmp_path / "again", adapter), NOWHERE)
    do(spec(tmp_path / "mcore", tmp_path / "to", adapter, to="megatron"), warm_model_configs)

    ours = tensors(tmp_path / "out")
    name = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[module] + ".weight"
    copy = {"embed_tokens": "embed_tokens", "lm_head": "shared_head.head"}[module] + ".weight"
    assert torch.equal(ours[f"model.layers.4.{copy}"], ours[name])
    assert not torch.equal(ours[name], tensors(base)[name])
    assert {key for key in ours if not torch.equal(ours[key], tensors(tmp_path / "again")[key])} == set()
    touched = json.loads((tmp_path / "out" / "manifest.json").read_text())["touched"]
    assert touched[f"model.layers.4.{copy}"] == touched[name] > 0


def test_several_adapters_are_added_to_the_same_base(base: Path, tmp_path: Path) -> None:
    one = write_adapter(base, tmp_path / "one", 1, target_modules=["q_proj", "up_proj"], r=2)
    two = write_adapter(base, tmp_path / "two", 2, target_modules=["q_proj", "down_proj"], r=6)

    do(spec(base, tmp_path / "out", one, two), NOWHERE)

    same(tensors(tmp_path / "out"), merged(adapted(base, [one, two]), ["a0", "a1"]))


def test_two_doras_are_pefts_and_what_the_unmerged_model_computes(base: Path, tmp_path: Path) -> None:
    pair = [write_adapter(base, tmp_path / str(n), n, target_modules=["q_proj"], use_dora=True) for n in range(2)]

    do(spec(base, tmp_path / "out", *pair), NOWHERE)

    model = adapted(base, pair)
    model.base_model.set_adapter(["a0", "a1"])
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = model(tokens).logits
        found = load(tmp_path / "out", torch.float64)(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    same(tensors(tmp_path / "out"), merged(model, ["a0", "a1"]))


@pytest.mark.parametrize("variant", ["lora", "dora", "patterns", "embedding", "saved modules"])
def test_the_merged_model_computes_what_the_unmerged_one_does(base: Path, tmp_path: Path, variant: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = adapted(base, [adapter])(tokens).logits
        found = load(tmp_path / "out", torch.float64)(tokens).logits
        untouched = load(base, torch.float64)(tokens).logits
    # The merged weights are fp32's.
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (found - untouched).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("fields", [{"svd_clamp": 0.9}, {"svd_driver": "gesvd"}, {"combine": "svd", "svd_clamp": 0.2}])
def test_what_svd_has_no_such_choice_for_is_refused(base: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="svd_"):
        spec(base, tmp_path / "out", tmp_path / "adapter", **fields)


COMBINED: dict[str, dict[str, Any]] = {
    "linear": {},
    "cat": {},
    "svd": {},
    "svd of rank 3": {"svd_rank": 3},
    "ties": {"density": 0.4},
    "ties by frequency": {"density": 0.6, "majority_sign_method": "frequency"},
    "magnitude_prune": {"density": 0.3},
}


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("weights", [(0.7, 1.5), (1.0, -0.5)], ids=str)
def test_combinations_are_pefts(base: Path, tmp_path: Path, name: str, weights: tuple[float, float]) -> None:
    targets = ["q_proj", "down_proj", "embed_tokens"]
    pair = [write_adapter(base, tmp_path / str(n), n, target_modules=targets, lora_alpha=3 + n) for n in range(2)]
    method = name.split(" ")[0]
    uses = tuple(AdapterUse(path=str(path), weight=weight) for path, weight in zip(pair, weights, strict=True))

    do(spec(base, tmp_path / "out", combine=method, adapters=uses, **COMBINED[name]), NOWHERE)

    model = adapted(base, pair)
    model.add_weighted_adapter(["a0", "a1"], list(weights), "both", combination_type=method, **COMBINED[name])
    same(tensors(tmp_path / "out"), merged(model, ["both"]))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_seeded(base: Path, tmp_path: Path, method: str) -> None:
    pair = [write_adapter(base, tmp_path / str(n), n, target_modules=["down_proj"]) for n in range(2)]

    for target, seed in (("a", 1), ("b", 1), ("c", 2)):
        do(spec(base, tmp_path / target, *pair, combine=method, density=0.5, seed=seed), NOWHERE)

    a, b, c = (tensors(tmp_path / folder)["model.layers.0.mlp.down_proj.weight"] for folder in ("a", "b", "c"))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_with_nothing_dropped_dare_is_the_plain_combination(base: Path, tmp_path: Path) -> None:
    pair = [write_adapter(base, tmp_path / str(n), n, target_modules=["down_proj"]) for n in range(2)]

    do(spec(base, tmp_path / "dare", *pair, combine="dare_linear", density=1.0), NOWHERE)
    do(spec(base, tmp_path / "linear", *pair, combine="linear"), NOWHERE)

    for name, tensor in tensors(tmp_path / "dare").items():
        assert torch.equal(tensor, tensors(tmp_path / "linear")[name])


def in_bf16(base: Path, target: Path) -> Path:
    """The same base, its tensors rounded."""
    target.mkdir()
    config = json.loads((base / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    (target / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.bfloat16() for name, tensor in tensors(base).items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_a_bf16_base_is_rounded_once(base: Path, tmp_path: Path, variant: str) -> None:
    rounded = in_bf16(base, tmp_path / "bf16")
    adapter = write_adapter(rounded, tmp_path / "adapter", dtype=torch.bfloat16, **VARIANTS[variant])

    do(spec(rounded, tmp_path / "out", adapter), NOWHERE)

    exact = merged(adapted(rounded, [adapter]), ["a0"])
    ours = tensors(tmp_path / "out")
    differing = sum(int((ours[name] != exact[name].bfloat16()).sum()) for name in ours)
    # fp32's own error flips what lies within 2^-23 or so of a midpoint of bf16: about one in some ten thousand.
    assert differing <= 1e-4 * sum(tensor.numel() for tensor in ours.values())


@pytest.mark.parametrize("variant", ["lora", "dora", "rslora", "embedding", "two of lora", "two of embedding"])
def test_pefts_rounding_is_pefts_element_for_element(base: Path, tmp_path: Path, variant: str) -> None:
    """But for two DoRA on one layer, of which PEFT unmerges and rebuilds the first in bf16 to find the base again."""
    rounded = in_bf16(base, tmp_path / "bf16")
    adapters = [
        write_adapter(
            rounded, tmp_path / str(seed), seed, dtype=torch.bfloat16, **VARIANTS[variant.removeprefix("two of ")]
        )
        for seed in range(2 if "two" in variant else 1)
    ]

    do(spec(rounded, tmp_path / "out", *adapters, rounding="peft"), NOWHERE)

    model = adapted(rounded, adapters, torch.bfloat16, autocast_adapter_dtype=False)
    theirs = merged(model, [f"a{number}" for number in range(len(adapters))])
    ours = tensors(tmp_path / "out")
    assert {name: int((ours[name] != theirs[name]).sum()) for name in ours} == dict.fromkeys(ours, 0)


TIED: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved both": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.mark.parametrize("variant", TIED)
def test_tied_tensors_part_where_an_adapter_changes_one(tmp_path: Path, variant: str) -> None:
    """The unmerged model is the judge: PEFT's merge of one of two tied tensors changes the other too."""
    base = case("qwen2", tmp_path / "base", tie_word_embeddings=True)
    adapter = write_adapter(base, tmp_path / "adapter", **TIED[variant])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = adapted(base, [adapter])(tokens).logits
        found = load(tmp_path / "out", torch.float64)(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" in tensors(tmp_path / "out")


def test_tied_tensors_stay_so_where_none_is_changed(tmp_path: Path) -> None:
    base = case("qwen2", tmp_path / "base", tie_word_embeddings=True)
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert tensors(tmp_path / "out").keys() == tensors(base).keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", [None, "bf16"])
@pytest.mark.parametrize("name", ["gqa", "qwen2-tied-mqa", "qwen3-moe", "gpt-oss"])
def test_merging_commutes_with_import_and_export(
    tmp_path: Path, warm_model_configs: Path, name: str, dtype: str | None
) -> None:
    """Bit for bit: HF merge then import, merge to Megatron, and a Megatron base merged into either format."""
    base = case(name, tmp_path / "base")
    experts = {"target_parameters": EXPERTS} if name in ("qwen3-moe", "gpt-oss") else {}
    targets = [
        "q_proj",
        "v_proj",
        "o_proj",
        "embed_tokens",
        *([] if experts else ["gate_proj", "up_proj", "down_proj"]),
    ]
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=targets, **experts)
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore")), warm_model_configs)

    do(spec(base, tmp_path / "hf", adapter, dtype=dtype), warm_model_configs)
    do(spec(base, tmp_path / "to-mcore", adapter, dtype=dtype, to="megatron"), warm_model_configs)
    do(spec(tmp_path / "mcore", tmp_path / "from-mcore", adapter, dtype=dtype), warm_model_configs)
    do(spec(tmp_path / "mcore", tmp_path / "mcore-mcore", adapter, dtype=dtype, to="megatron"), warm_model_configs)
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "hf-mcore")), warm_model_configs)
    for folder in ("to-mcore", "mcore-mcore", "hf-mcore"):
        do(ExportSpec(source=str(tmp_path / folder), target=str(tmp_path / f"{folder}-hf")), warm_model_configs)

    expected = tensors(tmp_path / "hf")
    for folder in ("from-mcore", "to-mcore-hf", "mcore-mcore-hf", "hf-mcore-hf"):
        found = tensors(tmp_path / folder)
        assert found.keys() == expected.keys(), folder
        assert not [name for name in expected if not torch.equal(found[name], expected[name])], folder
    if dtype is None:
        assert tensors(tmp_path / "hf-mcore-hf").keys() == expected.keys()


def test_a_quantized_base_is_dequantized_where_that_is_allowed(tmp_path: Path) -> None:
    way = quantized_folders.FP8
    write(
        Case(name="q", model_type="deepseek_v3", config={**BY_NAME["deepseek-v3"].config, "dtype": "bfloat16"}),
        tmp_path / "plain",
    )
    quantized_folders.write_quantized(
        tmp_path / "plain",
        tmp_path / "base",
        tmp_path / "meant",
        way,
        lambda name: name.endswith("proj.weight") or "kv_a_proj_with_mqa" in name,
        quantized_folders.fp8_blocks,
    )
    adapter = write_adapter(tmp_path / "plain", tmp_path / "adapter", target_modules=["o_proj"])

    with pytest.raises(BadInputError, match="--dequantize"):
        do(spec(tmp_path / "base", tmp_path / "out", adapter), NOWHERE)
    do(spec(tmp_path / "base", tmp_path / "out", adapter, dequantize=True), NOWHERE)

    out, meant = tensors(tmp_path / "out"), tensors(tmp_path / "meant")
    assert out.keys() == meant.keys()
    for name, tensor in out.items():
        assert torch.equal(tensor, meant[name]) == ("o_proj" not in name)
        torch.testing.assert_close(tensor.float(), meant[name].float(), atol=0.1, rtol=0.1)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])


def rewrite(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    found = load_file(adapter / WEIGHTS)
    change(found)
    save_file(found, adapter / WEIGHTS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def test_an_adapter_tensor_that_matches_nothing_is_refused(base: Path, tmp_path: Path, adapter: Path) -> None:
    def stray(found: dict[str, torch.Tensor]) -> None:
        found.update({FIRST.format(x).replace("q_proj", "z"): found[FIRST.format(x)].clone() for x in "AB"})

    rewrite(adapter, stray)

    with pytest.raises(BadInputError, match=r"self_attn\.z") as refused:
        do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert refused.value.info.code == "unknown_tensor"


def test_a_module_that_expects_factors_and_has_none_is_refused(base: Path, tmp_path: Path, adapter: Path) -> None:
    rewrite(adapter, lambda found: [found.pop(FIRST.format(x)) for x in "AB"] and None)

    with pytest.raises(BadInputError, match=r"layers\.0\.self_attn\.q_proj\.weight.*nothing for it") as refused:
        do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert refused.value.info.code == "missing_tensor"


UNNAMED: dict[str, dict[str, Any]] = {
    "names": {"target_modules": ["q_proj", "v_proj"]},
    "none": {"target_modules": []},
    "null": {"target_modules": None},
    "beginnings of names": {"target_modules": ["q", "k_pro", "layers"]},
    "a regex": {"target_modules": r".*\.q_proj"},
    "the end of a regex's match": {"target_modules": "q_proj"},
    "other layers": {"layers_to_transform": [0]},
    "excluded": {"exclude_modules": ["k_proj"]},
    "excluded by a regex": {"exclude_modules": r".*\.0\..*"},
    "parameters": {"target_modules": None, "target_parameters": ["mlp.experts.down_proj"]},
}


@pytest.mark.parametrize("name", UNNAMED)
def test_factors_that_peft_would_leave_out_are_refused(base: Path, tmp_path: Path, name: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "k_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | UNNAMED[name]))

    with pytest.raises(BadInputError, match=r"self_attn\.[qk]_proj.*PEFT leaves out.*target_modules") as refused:
        do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert refused.value.info.code == "unknown_tensor"


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]], ids=str)
def test_an_output_layer_is_named_or_refused(base: Path, tmp_path: Path, targets: str | list[str]) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=[*ALL, "lm_head"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))

    with pytest.raises(BadInputError, match=r"PEFT leaves out"):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "nemotron-h"])
def test_all_linear_means_all_that_peft_adapts(base: Path, tmp_path: Path, name: str) -> None:
    """As its config says where it was written before PEFT looked the modules up."""
    if name != "llama":
        base = case(name, tmp_path / name)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if name == "nemotron-h" else "all-linear"
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=targets)
    config = json.loads((adapter / "adapter_config.json").read_text())
    excluded = {"exclude_modules": r".*\.(in_proj|out_proj|up_proj|down_proj)"} if name == "nemotron-h" else {}
    (adapter / "adapter_config.json").write_text(json.dumps(config | excluded | {"target_modules": "all-linear"}))

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    lost = next(key for key in load_file(adapter / WEIGHTS) if "q_proj.lora_A" in key)
    rewrite(adapter, lambda found: [found.pop(lost.replace("lora_A", f"lora_{x}")) for x in "AB"] and None)
    with pytest.raises(BadInputError, match=r"q_proj\.weight.*nothing for it"):
        do(spec(base, tmp_path / "again", adapter), NOWHERE)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, adapter: Path) -> None:
    write_llama(tmp_path / "other", layers=2, hidden=128)

    with pytest.raises(BadInputError, match="Merge it into the base it was trained on"):
        do(spec(tmp_path / "other", tmp_path / "out", adapter), NOWHERE)


def test_a_merge_that_changes_nothing_fails(base: Path, tmp_path: Path, adapter: Path) -> None:
    rewrite(adapter, lambda found: [found[name].zero_() for name in found if "lora_B" in name] and None)

    with pytest.raises(BadInputError, match="nothing to add"):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert not (tmp_path / "out").exists()


def says_base(adapter: Path, name: str | None) -> None:
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": name}))


def test_an_adapter_that_names_another_folder_is_refused(base: Path, tmp_path: Path, adapter: Path) -> None:
    """By values; a copy of its base is as good as the base, and a name alone says nothing."""
    other = tmp_path / "other"
    shutil.copytree(base, other)
    says_base(adapter, str(other))
    do(spec(base, tmp_path / "copy", adapter), NOWHERE)
    save_file({name: tensor + 1 for name, tensor in tensors(base).items()}, other / "model.safetensors")

    with pytest.raises(BadInputError, match=r"base_model_name_or_path .* a folder whose .* is another one"):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)

    for number, name in enumerate(("org/name", None, str(base), str(tmp_path / "gone"))):
        says_base(adapter, name)
        do(spec(base, tmp_path / f"out{number}", adapter), NOWHERE)


def test_a_manifest_that_names_another_model_is_believed(
    base: Path, tmp_path: Path, adapter: Path, warm_model_configs: Path
) -> None:
    """As the base's source: a sibling's name with words added. What was merged has the names of what it was."""
    tuned = base.rename(tmp_path / "Tiny-8B-Instruct")
    do(ImportSpec(source=str(tuned), target=str(tmp_path / "mcore")), warm_model_configs)

    for name in ("org/Tiny-8B", "org/Tiny-8B-Instruct-v2"):
        says_base(adapter, name)
        with pytest.raises(BadInputError, match=f"{name}.*another model than .*Tiny-8B-Instruct"):
            do(spec(tmp_path / "mcore", tmp_path / "out", adapter), NOWHERE)

    says_base(adapter, "unsloth/tiny-8b-instruct-bnb-4bit")
    do(spec(tmp_path / "mcore", tmp_path / "Tiny-8B-Merged", adapter), NOWHERE)
    do(spec(tmp_path / "Tiny-8B-Merged", tmp_path / "again", adapter), NOWHERE)


UNCHANGED: dict[str, tuple[dict[str, Any], float]] = {
    "zero B": ({"target_modules": ["q_proj"], "init_lora_weights": True}, 1.0),
    "untrained DoRA": ({"target_modules": ["q_proj"], "use_dora": True, "init_lora_weights": True}, 1.0),
    "modules saved as they were": (
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "init_lora_weights": True},
        1.0,
    ),
    "weight 0": ({"target_modules": ["q_proj"], "init_lora_weights": False}, 0.0),
    "alpha 0": ({"target_modules": ["q_proj"], "init_lora_weights": False, "lora_alpha": 0}, 1.0),
}


@pytest.mark.parametrize("name", UNCHANGED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_as_it_was_before_training_is_no_merge(
    base: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    fields, weight = UNCHANGED[name]
    of = base if dtype == torch.float32 else in_bf16(base, tmp_path / "bf16")
    get_peft_model(load(of), LoraConfig(r=4, **fields)).save_pretrained(tmp_path / "adapter")
    use = AdapterUse(path=str(tmp_path / "adapter"), weight=weight)

    with pytest.raises(BadInputError, match="nothing to add"):
        do(spec(of, tmp_path / "out", adapters=(use,)), NOWHERE)

    assert not (tmp_path / "out").exists()


def test_what_rounding_takes_away_is_no_merge(base: Path, tmp_path: Path) -> None:
    rounded = in_bf16(base, tmp_path / "bf16")
    adapter = write_adapter(rounded, tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=1e-6)

    with pytest.raises(BadInputError, match="nothing to add"):
        do(spec(rounded, tmp_path / "out", adapter), NOWHERE)


@pytest.mark.parametrize(
    ("alpha", "found"),
    [
        (1e42, "a change that is not finite"),
        (float("inf"), "a change that is not finite"),
        (float("nan"), "NaN for a number"),
    ],
)
def test_an_alpha_beyond_fp32_is_refused(base: Path, tmp_path: Path, adapter: Path, alpha: float, found: str) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))

    with pytest.raises(BadInputError, match=found):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "magnitude", "lm_head"])
def test_an_adapter_that_diverged_is_refused(base: Path, tmp_path: Path, part: str) -> None:
    fields = {"target_modules": ["q_proj"], "use_dora": part == "magnitude"}
    adapter = write_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"], **fields)

    def spoil(found: dict[str, torch.Tensor]) -> None:
        name = next(name for name in found if part in name)
        found[name].view(-1)[-1] = float("nan")

    rewrite(adapter, spoil)

    with pytest.raises(BadInputError, match="a change that is not finite"):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)

    assert not (tmp_path / "out").exists()


def test_factors_of_another_rank_than_the_configs_are_refused(base: Path, tmp_path: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))

    with pytest.raises(BadInputError, match=r"found 4 rows, expected 8: rank 8"):
        do(spec(base, tmp_path / "out", adapter), NOWHERE)


def test_combined_ranks_must_agree(base: Path, tmp_path: Path, adapter: Path) -> None:
    other = write_adapter(base, tmp_path / "other", target_modules=["q_proj"], r=8)

    with pytest.raises(BadInputError, match="factors of ranks 4, 8"):
        do(spec(base, tmp_path / "out", adapter, other, combine="linear"), NOWHERE)


def test_a_dora_has_no_weight(base: Path, tmp_path: Path) -> None:
    dora = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)

    with pytest.raises(BadInputError, match="a magnitude is no sum"):
        do(spec(base, tmp_path / "out", adapters=(AdapterUse(path=str(dora), weight=0.5),)), NOWHERE)


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss-yarn-oblong"])
def test_experts_in_pefts_rounding_are_pefts_element_for_element(tmp_path: Path, name: str) -> None:
    """PEFT rounds their product and its scaling apart, which it does for no other layer."""
    base = case(name, tmp_path / "base", dtype="bfloat16")
    adapter = write_adapter(
        base, tmp_path / "adapter", dtype=torch.bfloat16, target_parameters=EXPERTS, target_modules=[]
    )

    do(spec(base, tmp_path / "out", adapter, rounding="peft"), NOWHERE)

    theirs = merged(adapted(base, [adapter], torch.bfloat16, autocast_adapter_dtype=False), ["a0"])
    ours: Any = load(tmp_path / "out", torch.bfloat16).state_dict()
    assert {key: int((ours[key] != theirs[key]).sum()) for key in ours} == dict.fromkeys(ours, 0)
