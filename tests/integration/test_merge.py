"""Merges against PEFT's own, in fp64: LoRA in all its variants, several at once, into either format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.case import BY_NAME, Case, write
from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import adapted, load, merged, write_adapter
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


def case(name: str, folder: Path, **config: object) -> Path:
    """A tiny random model of a family."""
    of = BY_NAME[name]
    write(Case(name=name, model_type=of.model_type, config={**of.config, **config}), folder)
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


@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("parameters", [EXPERTS, EXPERTS[1:]], ids=["both", "one"])
def test_experts_are_pefts(tmp_path: Path, name: str, parameters: list[str]) -> None:
    base = case(name, tmp_path / "base")
    fields = {"target_parameters": parameters, "target_modules": ["q_proj"]}
    adapter = write_adapter(base, tmp_path / "adapter", **fields, alpha_pattern={"mlp.experts.down_proj": 3})

    do(spec(base, tmp_path / "out", adapter), NOWHERE)

    theirs: Any = adapted(base, [adapter]).merge_and_unload()
    ours: Any = load(tmp_path / "out")
    same(dict(ours.state_dict()), dict(theirs.state_dict()))


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
