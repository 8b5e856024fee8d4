"""Adapters between Megatron's format and PEFT's: by hand-made values, by PEFT itself, and there and back."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.families.case import BY_NAME, write
from tests.jobs_here import do
from tests.megatron_adapter import Tensors, deltas, fused, read_tensors, save, split
from tests.peft_here import load, merged, write_adapter
from worker.adapters.peft_folder import WEIGHTS
from worker.handlers.context import Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import AdapterExportSpec, AdapterImportSpec, ImportSpec, MergeSpec

NOWHERE = Path("/nowhere")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = torch.arange(48).reshape(2, 24)


def case(name: str, folder: Path, **config: object) -> Path:
    write(replace(BY_NAME[name], config={**BY_NAME[name].config, **config}), folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hidden = ffn, two query groups of two heads each, heads wider than the hidden size."""
    return case("gqa", tmp_path_factory.mktemp("base") / "base")


def export(source: Path, target: Path, base: Path | None, **fields: Any) -> Path:
    spec = AdapterExportSpec(source=str(source), target=str(target), base=str(base) if base else None, **fields)
    assert isinstance(do(spec, NOWHERE), Prepared)
    return target


def import_(source: Path, target: Path, base: Path, **fields: Any) -> Path:
    spec = AdapterImportSpec(source=str(source), target=str(target), base=str(base), **fields)
    assert isinstance(do(spec, NOWHERE), Prepared)
    return target


def loaded(base: Path, adapter: Path) -> Any:
    """PEFT's model, with nothing unexpected and nothing missing, in fp64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model: Any = PeftModel.from_pretrained(load(base, torch.float64), str(adapter), "a0")
    result = model.load_adapter(str(adapter), "again")
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora" in key] == []
    return model.to(torch.float64)


def peft_deltas(model: Any) -> Tensors:
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("a0").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight") and "a0" in module.lora_A
    }


def same(ours: Tensors, theirs: Tensors, tolerance: float = 1e-6) -> None:
    """Products of factors in fp32, taken in fp64."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


def test_fused_factors_come_apart_as_pefts(base: Path, tmp_path: Path) -> None:
    tensors = fused(3)
    adapter = save(tmp_path / "mcore", tensors, type="lora", dim=3, alpha=7, target_modules=["linear_qkv"])

    out = export(adapter, tmp_path / "out", base, base_name="org/model")

    same(peft_deltas(loaded(base, out)), deltas(tensors, 7 / 3))
    config = config_of(out)
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 7, "org/model")
    assert sorted(config["target_modules"]) == sorted(ALL)
    assert (tmp_path / "out" / "manifest.json").exists()
    written = load_file(out / WEIGHTS)
    q, k = (written[f"base_model.model.model.layers.1.self_attn.{m}_proj.lora_A.weight"] for m in "qk")
    assert torch.equal(q, k)


def test_the_exported_logits_are_those_of_a_merge_by_hand(base: Path, tmp_path: Path) -> None:
    tensors = fused(5)
    out = export(save(tmp_path / "m", tensors, dim=5, alpha=10), tmp_path / "out", base)
    by_hand = load(base, torch.float64)
    with torch.no_grad():
        for name, delta in deltas(tensors, 2.0).items():
            by_hand.get_submodule(name).weight += delta

        torch.testing.assert_close(loaded(base, out)(TOKENS).logits, by_hand(TOKENS).logits, rtol=1e-6, atol=1e-6)


def test_magnitudes_are_exported(base: Path, tmp_path: Path) -> None:
    tensors = fused(3, dora=True)
    out = export(save(tmp_path / "m", tensors, type="dora", dim=3, alpha=6), tmp_path / "out", base)
    by_hand: Any = load(base, torch.float64)
    with torch.no_grad():
        magnitudes = by_magnitude(tensors)
        for name, delta in deltas(tensors, 2.0).items():
            weight = by_hand.get_submodule(name).weight
            weight += delta
            weight *= (magnitudes[name] / weight.norm(dim=1))[:, None]

    assert config_of(out)["use_dora"]
    same(merged(loaded(base, out), ["a0"]), dict(by_hand.state_dict()))


def by_magnitude(tensors: Tensors) -> Tensors:
    suffix = ".adapter.weight_magnitude"
    return {
        f"model.layers.{layer}.{module}": rows.double()
        for key, stack in tensors.items()
        if key.endswith(suffix)
        for layer, one in enumerate(stack)
        for module, rows in split(key.removeprefix("decoder.layers.").removesuffix(suffix), one).items()
    }


def test_canonical_factors_go_one_to_one(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    key = "decoder.layers.self_attention.linear_qkv.adapter."
    tensors = {
        f"{key}adapter_{part}.{side}.weight": torch.randn(2, *shape)
        for part, rows in (("q", 64), ("v", 32))
        for side, shape in (("linear_in", (3, 48)), ("linear_out", (rows, 3)))
    }
    config = {"type": "canonical_lora", "dim": 3, "alpha": 3, "target_modules": ["linear_q", "linear_v"]}

    out = export(save(tmp_path / "m", tensors, **config), tmp_path / "out", base)

    written = load_file(out / WEIGHTS)
    loaded(base, out)
    assert config_of(out)["target_modules"] == ["q_proj", "v_proj"]
    for part in "qv":
        for ours, theirs in (("linear_in", "lora_A"), ("linear_out", "lora_B")):
            name = f"base_model.model.model.layers.1.self_attn.{part}_proj.{theirs}.weight"
            assert torch.equal(written[name], tensors[f"{key}adapter_{part}.{ours}.weight"][1])


def test_a_tensor_for_each_layer_is_read_too(base: Path, tmp_path: Path) -> None:
    stacked = fused(3)
    apart = {
        name.replace("layers.", f"layers.{layer}."): stack[layer].clone()
        for name, stack in stacked.items()
        for layer in range(2)
    }

    one = export(save(tmp_path / "stacked", stacked, dim=3, alpha=3), tmp_path / "one", base)
    other = export(save(tmp_path / "apart", apart, dim=3, alpha=3), tmp_path / "other", base)

    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def test_some_layers_are_named_in_full(base: Path, tmp_path: Path) -> None:
    tensors = {
        f"decoder.layers.1.self_attention.linear_qkv.adapter.linear_{side}.weight": torch.randn(shape)
        for side, shape in (("in", (3, 48)), ("out", (128, 3)))
    }
    targets = ["*.layers.1.*.linear_qkv"]

    out = export(save(tmp_path / "m", tensors, dim=3, alpha=3, target_modules=targets), tmp_path / "out", base)

    assert len(peft_deltas(loaded(base, out))) == 3
    assert config_of(out)["target_modules"] == [f"model.layers.1.self_attn.{part}_proj" for part in "kqv"]


def test_a_run_config_of_megatron_bridge_says_alpha(base: Path, tmp_path: Path) -> None:
    tensors = fused(3, dora=True)
    adapter = save(tmp_path / "m", tensors)
    section = {
        "_target_": "megatron.bridge.peft.dora.DoRA",
        "dim": 3,
        "alpha": 9,
        "target_modules": ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"],
        "exclude_modules": [],
        "dropout": 0.1,
        "dropout_position": "pre",
        "lora_A_init_method": "xavier",
    }
    (adapter / "iter_0000007" / "run_config.yaml").write_text(yaml.safe_dump({"peft": section}))

    config = config_of(export(adapter, tmp_path / "out", base))

    assert (config["r"], config["lora_alpha"], config["use_dora"], config["lora_dropout"]) == (3, 9, True, 0.1)


@pytest.mark.parametrize("shared", [True, False], ids=["one for all experts", "one each"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_exported(tmp_path: Path, name: str, shared: bool) -> None:
    base = case(name, tmp_path / "base")
    torch.manual_seed(2)
    axes = (2,) if shared else (2, 6)
    tensors = {
        f"decoder.layers.mlp.experts.experts.{layer}.adapter.linear_{side}.weight": 0.1 * torch.randn(*axes, *shape)
        for layer, rows in (("linear_fc1", 96), ("linear_fc2", 48))
        for side, shape in (("in", (3, 48)), ("out", (rows, 3)))
    }
    targets = ["linear_fc1", "linear_fc2"]

    out = export(save(tmp_path / "m", tensors, dim=3, alpha=3, target_modules=targets), tmp_path / "out", base)

    adapted: Any = loaded(base, out)
    ours = merged(adapted, ["a0"])
    theirs: Any = load(base, torch.float64).state_dict()
    for layer in range(2):
        for expert in range(6):
            index = (layer,) if shared else (layer, expert)
            for leaf, into in (("linear_fc1", "gate_up_proj"), ("linear_fc2", "down_proj")):
                key = f"decoder.layers.mlp.experts.experts.{leaf}.adapter.linear_"
                a, b = (tensors[f"{key}{side}.weight"][index].double() for side in ("in", "out"))
                theirs[f"model.layers.{layer}.mlp.experts.{into}"][expert] += b @ a
    same(ours, theirs)


def test_what_belongs_to_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    whole = fused(3)
    spare = {"decoder.layers.mlp.linear_fc3.adapter.linear_in.weight": torch.randn(2, 3, 48)}
    odd = {"decoder.layers.mlp.linear_fc2.adapter.linear_mid.weight": torch.randn(2, 3, 48)}
    alone = {name: t for name, t in whole.items() if name != "decoder.layers.mlp.linear_fc2.adapter.linear_out.weight"}
    few = {name: t for name, t in whole.items() if "linear_fc2" not in name}
    narrow = {name: t[..., :-1].clone() if "fc2.adapter.linear_in" in name else t for name, t in whole.items()}
    config = {"dim": 3, "alpha": 3, "target_modules": ["linear_qkv", "linear_fc2"]}
    for number, (tensors, changes, says) in enumerate(
        (
            ({**whole, **spare}, {}, "linear_fc3.*no layer for it"),
            ({**whole, **odd}, {}, "linear_mid.*not known"),
            (alone, {}, "linear_fc2.*A alone"),
            (few, {}, "linear_fc2.*no tensor"),
            (narrow, {}, "linear_fc2.*shape"),
            (whole, {"dim": 4}, "rank 3.*expected dim 4"),
            (whole, {"type": "dora"}, "magnitude"),
            (fused(3, dora=True), {}, "magnitude.*'lora'"),
            (whole, {"type": "canonical_lora", "target_modules": ["linear_q"]}, "adapter_q"),
            (whole, {"use_rslora": True}, "use_rslora"),
            (whole, {"type": "vera"}, "type"),
            (spare, {"target_modules": None}, "linear_fc3"),
        )
    ):
        adapter = save(tmp_path / str(number), tensors, **{**config, **changes})
        with pytest.raises(BadInputError, match=says):
            export(adapter, tmp_path / "out", base)


def test_an_adapter_without_alpha_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no peft_config\.json"):
        export(save(tmp_path / "m", fused(3)), tmp_path / "out", base)


def mcore_deltas(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """What a Megatron adapter adds by HF module, whatever its form."""
    config = json.loads((folder / "peft_config.json").read_text())
    tensors = read_tensors(folder / "release")
    scale = config["alpha"] / config["dim"]
    found = deltas({name: t for name, t in tensors.items() if ".adapter_" not in name}, scale)
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj"}
    for name, a in tensors.items():
        if ".adapter_" in name and "linear_in" in name:
            b = tensors[name.replace("linear_in", "linear_out")]
            part = name.partition(".adapter_")[2].partition(".")[0]
            for layer in range(2):
                found[f"model.layers.{layer}.{names[part]}"] = scale * b[layer].double() @ a[layer].double()
    return config, found


@pytest.mark.parametrize("form", ["auto", "canonical", "fused"])
def test_different_factors_of_q_k_and_v_come_over_exactly(base: Path, tmp_path: Path, form: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL, r=3)

    out = import_(adapter, tmp_path / "out", base, form=form)

    config, found = mcore_deltas(out)
    assert config["type"] == ("lora" if form == "fused" else "canonical_lora")
    assert config["dim"] == (9 if form == "fused" else 3)
    assert (out / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert (out / "manifest.json").exists()
    same(found, peft_deltas(loaded(base, adapter)), 1e-12)


def test_there_and_back_is_the_same_adapter(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL, r=3, dtype=torch.bfloat16)

    back = export(import_(adapter, tmp_path / "mcore", base), tmp_path / "back", None)

    ours, theirs = load_file(back / WEIGHTS), load_file(adapter / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kept = ("r", "lora_alpha", "base_model_name_or_path", "use_dora", "bias")
    assert {name: config_of(back)[name] for name in kept} == {name: config_of(adapter)[name] for name in kept}
    assert sorted(config_of(back)["target_modules"]) == sorted(ALL)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_back_and_there_is_the_same_adapter(base: Path, tmp_path: Path, dora: bool) -> None:
    tensors = fused(3, dora=dora)
    config = {"type": "dora" if dora else "lora", "dim": 3, "alpha": 5.0}
    names = ["linear_fc1", "linear_fc2", "linear_proj", "linear_qkv"]

    peft = export(save(tmp_path / "m", tensors, **config, target_modules=names), tmp_path / "peft", base)
    back = import_(peft, tmp_path / "back", base)

    found = read_tensors(back / "release")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in found)
    assert json.loads((back / "peft_config.json").read_text()) == config | {"target_modules": names}


def test_dora_with_different_factors_becomes_one_of_larger_rank(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL, r=3, use_dora=True)

    out = import_(adapter, tmp_path / "out", base)

    config, found = mcore_deltas(out)
    assert (config["type"], config["dim"]) == ("dora", 9)
    same(found, peft_deltas(loaded(base, adapter)), 1e-12)
    back = export(out, tmp_path / "back", base)
    same(merged(loaded(base, back), ["a0"]), merged(loaded(base, adapter), ["a0"]))


VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "some": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "one half": {"target_modules": ["up_proj"]},
    "one layer": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "ranks": {"target_modules": ALL, "rank_pattern": {"k_proj": 2, r"layers\.1\..*down_proj": 8}},
    "alphas": {"target_modules": ALL, "alpha_pattern": {"v_proj": 1, "layers.0.self_attn.o_proj": 9}},
    "head": {"target_modules": ["lm_head", "q_proj"]},
}


@pytest.mark.parametrize("form", ["auto", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_peft_varies_comes_over_and_back(base: Path, tmp_path: Path, variant: str, form: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])

    out = import_(adapter, tmp_path / "out", base, form=form)
    back = export(out, tmp_path / "back", base)

    theirs, found = peft_deltas(loaded(base, adapter)), peft_deltas(loaded(base, back))
    zeros = {name for name in found if name not in theirs}
    assert not any(found[name].any() for name in zeros)
    # One scale serves all: where they differ, B is multiplied by it and rounded to fp32.
    same(
        {name: found[name] for name in theirs}, theirs, 1e-12 if variant not in ("ranks", "alphas", "rslora") else 1e-7
    )


def test_a_bf16_adapter_of_several_scales_is_written_in_fp32(base: Path, tmp_path: Path) -> None:
    fields = VARIANTS["alphas"]
    adapter = write_adapter(base, tmp_path / "adapter", dtype=torch.bfloat16, **fields)

    _, found = mcore_deltas(import_(adapter, tmp_path / "out", base))

    same(found, peft_deltas(loaded(base, adapter)))


@pytest.mark.parametrize("form", ["auto", "fused"])
@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_experts_come_over_and_back(tmp_path: Path, name: str, form: str) -> None:
    base = case(name, tmp_path / "base")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = write_adapter(base, tmp_path / "adapter", target_parameters=parameters, target_modules=["q_proj"])

    back = export(import_(adapter, tmp_path / "out", base, form=form), tmp_path / "back", base)

    same(merged(loaded(base, back), ["a0"]), merged(loaded(base, adapter), ["a0"]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA without"),
    ],
)
def test_what_megatron_has_no_place_for_is_refused(
    base: Path, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **fields)

    with pytest.raises(BadInputError, match=says):
        import_(adapter, tmp_path / "out", base)


def test_an_incomplete_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    kept = {name: tensor for name, tensor in load_file(adapter / WEIGHTS).items() if "layers.1" not in name}
    save_file(kept, adapter / WEIGHTS)

    with pytest.raises(BadInputError, match=r"layers\.1\.self_attn\.q_proj"):
        import_(adapter, tmp_path / "out", base)


def test_factors_that_the_config_does_not_name_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL)
    config = config_of(adapter) | {"target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    with pytest.raises(BadInputError, match=r"_proj.*PEFT leaves out.*q_proj"):
        import_(adapter, tmp_path / "out", base)


def test_a_megatron_base_says_as_much(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore-base")), warm_model_configs)
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL)

    one = import_(adapter, tmp_path / "one", base)
    other = import_(adapter, tmp_path / "other", tmp_path / "mcore-base")

    same(read_tensors(one / "release"), read_tensors(other / "release"), 0)


def test_a_merge_of_what_came_back_is_the_same_merge(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL)
    back = export(import_(adapter, tmp_path / "m", base), tmp_path / "back", base)

    for name in ("adapter", "back"):
        uses = ({"path": str(tmp_path / name)},)
        do(MergeSpec(source=str(base), target=str(tmp_path / f"{name}-merged"), adapters=uses), NOWHERE)

    one, other = (load_file(tmp_path / f"{name}-merged" / "model.safetensors") for name in ("adapter", "back"))
    assert back != adapter
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_experts_of_one_projection_have_no_place_for_the_other(tmp_path: Path) -> None:
    """Gate without up: canonical LoRA's own name for each, so that what is not there is not asked for again."""
    base, adapter = case("qwen3-moe", tmp_path / "base"), tmp_path / "adapter"
    torch.manual_seed(3)
    factors = {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight": 0.1 * torch.randn(*shape)
        for file in base.glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if name.endswith("gate_proj.weight") and ".experts." in name
        for part, shape in (("A", (4, tensor.shape[1])), ("B", (tensor.shape[0], 4)))
    }
    adapter.mkdir()
    save_file(factors, adapter / WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["gate_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    out = import_(adapter, tmp_path / "out", base)
    back = export(out, tmp_path / "back", base)

    assert "linear_fc1_up" not in (out / "peft_config.json").read_text()
    assert set(load_file(back / WEIGHTS)) == set(factors)
