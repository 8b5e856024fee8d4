"""Megatron adapters merged: bit for bit what the same adapter in PEFT's format comes to, into either format."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.case import BY_NAME, write
from tests.jobs_here import do
from tests.megatron_adapter import Tensors, fused, read_tensors, save
from tests.peft_here import write_adapter
from worker.handlers.context import Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import AdapterExportSpec, AdapterImportSpec, AdapterUse, ImportSpec, MergeSpec

NOWHERE = Path("/nowhere")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = "model.safetensors"
CHECKED = {"verify": ("tensors",)}
LAYERS = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


def case(name: str, folder: Path, **config: object) -> Path:
    write(replace(BY_NAME[name], config={**BY_NAME[name].config, **config}), folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two query groups of two heads each, heads wider than the hidden size."""
    return case("gqa", tmp_path_factory.mktemp("base") / "base")


def merge(base: Path, target: Path, *adapters: Path | AdapterUse, socket: Path = NOWHERE, **fields: Any) -> Tensors:
    """The merged tensors, by torch's and safetensors' own readers."""
    uses = tuple(one if isinstance(one, AdapterUse) else AdapterUse(path=str(one)) for one in adapters)
    done = do(MergeSpec(**{"source": str(base), "target": str(target), "adapters": uses, **fields}), socket)
    assert isinstance(done, Prepared)
    if fields.get("to") == "megatron":
        return read_tensors(target / "release")
    return load_file(target / WEIGHTS)


def export(adapter: Path, target: Path, base: Path) -> Path:
    do(AdapterExportSpec(source=str(adapter), target=str(target), base=str(base)), NOWHERE)
    return target


def import_(adapter: Path, target: Path, base: Path, **fields: Any) -> Path:
    do(AdapterImportSpec(source=str(adapter), target=str(target), base=str(base), **fields), NOWHERE)
    return target


def identical(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def per_layer(tensors: Tensors) -> Tensors:
    """Stacks of layers taken apart."""
    start = "decoder.layers."
    return {
        name.replace(start, f"{start}{layer}."): part.clone()
        for name, stack in tensors.items()
        if name.startswith(start)
        for layer, part in enumerate(stack)
    } | {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


def canonical(folder: Path) -> Path:
    """q and v of the fused layer, gate of the other, each with factors of its own."""
    torch.manual_seed(1)
    rows = {
        "q": ("self_attention.linear_qkv", 64),
        "v": ("self_attention.linear_qkv", 32),
        "gate": ("mlp.linear_fc1", 48),
    }
    tensors = {
        f"decoder.layers.{layer}.adapter.adapter_{part}.{side}.weight": 0.1 * torch.randn(2, *shape)
        for part, (layer, height) in rows.items()
        for side, shape in (("linear_in", (3, 48)), ("linear_out", (height, 3)))
    }
    targets = ["linear_q", "linear_v", "linear_fc1_gate"]
    return save(folder, tensors, type="canonical_lora", dim=3, alpha=6, target_modules=targets)


def adapter_of(kind: str, folder: Path) -> Path:
    if kind == "canonical":
        return canonical(folder)
    dora = kind == "dora"
    config = {"type": "dora" if dora else "lora", "dim": 3, "alpha": 7, "target_modules": LAYERS}
    return save(folder, fused(3, dora=dora), **config)


@pytest.mark.parametrize("kind", ["fused", "canonical", "dora"])
def test_a_megatron_adapter_is_merged_as_its_export(base: Path, tmp_path: Path, kind: str) -> None:
    adapter = adapter_of(kind, tmp_path / "mcore")

    ours = merge(base, tmp_path / "ours", adapter)

    identical(ours, merge(base, tmp_path / "theirs", export(adapter, tmp_path / "peft", base)))
    assert any(not torch.equal(ours[name], before) for name, before in load_file(base / WEIGHTS).items())
    manifest = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    assert len(manifest["touched"]) == (6 if kind == "canonical" else 14)
    assert str(adapter / "peft_config.json") in {source["path"] for source in manifest["source"]}


IMPORTED: dict[str, dict[str, Any]] = {
    "canonical": {"target_modules": ALL, "lora_alpha": 8},
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "output layer": {"target_modules": ["lm_head", "v_proj"]},
}


@pytest.mark.parametrize("name", IMPORTED)
def test_an_imported_adapter_is_merged_as_the_one_it_was(base: Path, tmp_path: Path, name: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **IMPORTED[name])

    ours = merge(base, tmp_path / "ours", import_(adapter, tmp_path / "mcore", base))

    identical(ours, merge(base, tmp_path / "theirs", adapter))


def test_side_by_side_in_one_pair_the_sum_is_the_same(base: Path, tmp_path: Path) -> None:
    """A product of rank 3r, most of it zeros, may end in other last bits than one of rank r."""
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL, use_dora=True)

    ours = merge(base, tmp_path / "ours", import_(adapter, tmp_path / "mcore", base, form="fused"))

    theirs = merge(base, tmp_path / "theirs", adapter)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["fused", "canonical", "dora"])
def test_merging_a_megatron_adapter_commutes_with_import(
    base: Path, tmp_path: Path, warm_model_configs: Path, kind: str
) -> None:
    """HF merge then import, merge to Megatron, and import then merge: the same bytes; and back to HF."""
    adapter = adapter_of(kind, tmp_path / "mcore")
    do(ImportSpec(source=str(base), target=str(tmp_path / "base")), warm_model_configs)

    hf = merge(base, tmp_path / "hf", adapter)
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "hf-mcore")), warm_model_configs)
    expected = read_tensors(tmp_path / "hf-mcore" / "release")

    identical(merge(base, tmp_path / "a", adapter, socket=warm_model_configs, to="megatron"), expected)
    identical(merge(tmp_path / "base", tmp_path / "b", adapter, socket=warm_model_configs, to="megatron"), expected)
    identical(merge(tmp_path / "base", tmp_path / "c", adapter), hf)


@pytest.mark.parametrize("kind", ["fused", "dora"])
def test_keys_of_a_base_and_of_an_adapter_are_each_their_own(
    base: Path, tmp_path: Path, warm_model_configs: Path, kind: str
) -> None:
    """Layers in one stack, or each with keys of its own: the same merge, and written either way."""
    adapter = adapter_of(kind, tmp_path / "mcore")
    stacked = read_tensors(adapter / "iter_0000007")
    beside = {"decoder.layers.0.mlp.linear_fc2.weight": torch.zeros(48, 48)}
    config = json.loads((adapter / "peft_config.json").read_text())
    by_layer = save(tmp_path / "by-layer", per_layer(stacked) | beside, **config)
    do(ImportSpec(source=str(base), target=str(tmp_path / "base"), layer_keys="per-layer"), warm_model_configs)
    hf = merge(base, tmp_path / "hf", adapter)

    for number, (one, other) in enumerate([(tmp_path / "base", adapter), (tmp_path / "base", by_layer)]):
        identical(merge(one, tmp_path / str(number), other), hf)
    exports = [export(one, tmp_path / f"peft-{one.name}", tmp_path / "base") for one in (adapter, by_layer)]
    identical(*(load_file(one / "adapter_model.safetensors") for one in exports))
    written = merge(
        base, tmp_path / "out", adapter, socket=warm_model_configs, to="megatron", layer_keys="per-layer", **CHECKED
    )
    merged = merge(tmp_path / "base", tmp_path / "plain", adapter, socket=warm_model_configs, to="megatron")
    identical(written, per_layer(merged))


@pytest.mark.parametrize("shared", [True, False], ids=["one for all experts", "one each"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_merged_as_their_export(tmp_path: Path, name: str, shared: bool) -> None:
    base = case(name, tmp_path / "base")
    adapter = save(tmp_path / "m", of_experts(3, shared=shared), dim=3, alpha=3, target_modules=LAYERS[2:])

    ours = merge(base, tmp_path / "ours", adapter)

    identical(ours, merge(base, tmp_path / "theirs", export(adapter, tmp_path / "peft", base)))
    before = load_file(base / WEIGHTS)
    changed = {key for key in ours if not torch.equal(ours[key], before[key])}
    assert changed == {key for key in ours if ".experts." in key}


def of_experts(rank: int, *, shared: bool) -> Tensors:
    torch.manual_seed(2)
    axes = (2,) if shared else (2, 6)
    return {
        f"decoder.layers.mlp.experts.experts.{layer}.adapter.linear_{side}.weight": 0.1 * torch.randn(*axes, *shape)
        for layer, rows in (("linear_fc1", 96), ("linear_fc2", 48))
        for side, shape in (("in", (rank, 48)), ("out", (rows, rank)))
    }


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["gpt-oss", "gpt-oss-yarn-oblong"])
def test_experts_that_hf_keeps_turned_are_merged(
    tmp_path: Path, warm_model_configs: Path, name: str, dora: bool
) -> None:
    """By hand, in Megatron's own layout; and HF merge then import is import then merge, bit for bit."""
    base = case(name, tmp_path / "base")
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore")), warm_model_configs)
    before = read_tensors(tmp_path / "mcore" / "release")
    torch.manual_seed(3)
    tensors: Tensors = {}
    expected: Tensors = {}
    for leaf in LAYERS[2:]:
        weight = before[f"decoder.layers.mlp.experts.experts.{leaf}.weight"]
        *stack, rows, columns = weight.shape
        a, b, m = 0.1 * torch.randn(*stack, 3, columns), 0.1 * torch.randn(*stack, rows, 3), torch.rand(*stack, rows)
        key = f"decoder.layers.mlp.experts.experts.{leaf}"
        tensors |= {f"{key}.adapter.linear_in.weight": a, f"{key}.adapter.linear_out.weight": b}
        moved = weight.double() + 2 * b.double() @ a.double()
        if dora:
            tensors[f"{key}.adapter.weight_magnitude"] = m
            moved *= (m / moved.norm(dim=-1))[..., None]
        expected[f"{key}.weight"] = moved
    config = {"type": "dora" if dora else "lora", "dim": 3, "alpha": 6, "target_modules": LAYERS[2:]}
    adapter = save(tmp_path / "m", tensors, **config)

    ours = merge(tmp_path / "mcore", tmp_path / "ours", adapter, socket=warm_model_configs, to="megatron")

    for key, tensor in ours.items():
        exact = expected.get(key, before[key].double())
        torch.testing.assert_close(tensor.double(), exact, rtol=2e-6, atol=2e-6, msg=key)
    merge(base, tmp_path / "hf", adapter)
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "hf-mcore")), warm_model_configs)
    identical(read_tensors(tmp_path / "hf-mcore" / "release"), ours)


def test_experts_of_a_smaller_rank_have_a_larger_scale(tmp_path: Path) -> None:
    """`normalize_moe_lora`: alpha over their own rank."""
    base = case("qwen3-moe", tmp_path / "base")
    config = {"dim": 6, "alpha": 6, "target_modules": LAYERS[2:], "normalize_moe_lora": True}
    reduced = save(tmp_path / "a", of_experts(3, shared=True), **config)
    plain = save(tmp_path / "b", of_experts(3, shared=True), **{**config, "dim": 3, "normalize_moe_lora": False})

    identical(merge(base, tmp_path / "ours", reduced), merge(base, tmp_path / "theirs", plain))


def test_layers_of_multi_token_prediction_are_merged_too(tmp_path: Path) -> None:
    base = case("glm4-moe-mtp", tmp_path / "base")
    before = load_file(base / WEIGHTS)
    layer = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    weight = before[f"model.layers.{layer}.self_attn.o_proj.weight"]
    key = "mtp.layers.0.transformer_layer.self_attention.linear_proj.adapter."
    a, b = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
    tensors = {f"{key}linear_in.weight": a, f"{key}linear_out.weight": b}

    adapter = save(tmp_path / "m", tensors, dim=3, alpha=3, target_modules=["mtp.*linear_proj"])

    ours = merge(base, tmp_path / "out", adapter)

    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == {f"model.layers.{layer}.self_attn.o_proj.weight"}
    torch.testing.assert_close(ours[changed.pop()], weight + b @ a)


def test_megatron_and_peft_adapters_come_together(base: Path, tmp_path: Path) -> None:
    one, two = adapter_of("fused", tmp_path / "one"), write_adapter(base, tmp_path / "two", target_modules=ALL, r=3)
    as_peft = export(one, tmp_path / "peft", base)

    for number, fields in enumerate(({}, {"combine": "ties", "density": 0.5}, {"combine": "cat"})):
        ours, theirs = (
            merge(base, tmp_path / f"{which}{number}", AdapterUse(path=str(of), weight=0.5), two, **fields)
            for which, of in (("ours", one), ("theirs", as_peft))
        )
        identical(ours, theirs)


def test_a_folder_that_is_no_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"found an HF checkpoint"):
        merge(base, tmp_path / "out", base)


def test_an_adapter_that_describes_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    """Other query groups put other rows of a fused layer into q, k and v."""
    adapter = adapter_of("fused", tmp_path / "m")
    config = json.loads((base / "config.json").read_text())
    (adapter / "hf").mkdir()
    (adapter / "hf" / "config.json").write_text(
        json.dumps(config | {"num_attention_heads": 6, "num_key_value_heads": 1})
    )

    with pytest.raises(BadInputError, match="a description of another model than the base's"):
        merge(base, tmp_path / "out", adapter)


def test_an_adapter_imported_for_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    adapter = import_(write_adapter(other, tmp_path / "adapter", target_modules=ALL), tmp_path / "mcore", other)
    merge(base, tmp_path / "copy", adapter)
    save_file({name: t + 1 for name, t in load_file(base / WEIGHTS).items()}, other / WEIGHTS)

    with pytest.raises(BadInputError, match="base_model_name_or_path"):
        merge(base, tmp_path / "out", adapter)


def test_what_belongs_to_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    whole = fused(3)
    config = {"dim": 3, "alpha": 3, "target_modules": LAYERS}
    spare = {"decoder.layers.mlp.linear_fc3.adapter.linear_in.weight": torch.randn(2, 3, 48)}
    three = {name: torch.cat([t, t[:1]]) for name, t in whole.items()}
    few = {name: t for name, t in whole.items() if "linear_fc2" not in name}
    for number, (tensors, changes, says) in enumerate(
        (
            ({**whole, **spare}, {}, "linear_fc3.*no layer for it"),
            (few, {}, "linear_fc2.*no tensor"),
            (three, {}, r"of shape \[3, 3, 48\], while the base has a stack of \[2\]"),
            (whole, {"dim": 4}, "rank 3.*expected dim 4"),
            (whole, {"type": "dora"}, "magnitude"),
            (whole, {"alpha": 0}, "nothing to add"),
        )
    ):
        adapter = save(tmp_path / str(number), tensors, **{**config, **changes})
        with pytest.raises(BadInputError, match=says):
            merge(base, tmp_path / "out", adapter)
    assert not (tmp_path / "out").exists()
