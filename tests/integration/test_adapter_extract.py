"""Adapters out of two checkpoints: exact where the difference has their rank, else the nearest there is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.families.case import BY_NAME, write
from tests.jobs_here import do
from tests.peft_here import load
from worker.adapters.peft_folder import WEIGHTS
from worker.handlers.context import Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import AdapterExtractSpec, ImportSpec, MergeSpec
from worker.jobs.state import CheckpointResult

NOWHERE = Path("/nowhere")
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    write(BY_NAME["gqa"], folder)
    return folder


def tuned(base: Path, folder: Path, rank: int, *, changed: tuple[str, ...] = (), dtype: Any = torch.float32) -> Path:
    """The base with differences of this rank in its layers' matrices, and in other tensors as asked."""
    torch.manual_seed(3)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("proj.weight"):
            tensors[name] = tensor + torch.randn(len(tensor), rank) @ torch.randn(rank, tensor.shape[1])
        elif name in changed:
            tensors[name] = tensor + 1
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    save_file({name: t.to(dtype).contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def extract(base: Path, other: Path, target: Path, rank: int, **fields: Any) -> CheckpointResult:
    spec = AdapterExtractSpec(source=str(base), tuned=str(other), target=str(target), rank=rank, **fields)
    done = do(spec, NOWHERE)
    assert isinstance(done, Prepared)
    return done.result


def test_a_difference_of_its_rank_comes_back_whole(base: Path, tmp_path: Path) -> None:
    other = tuned(base, tmp_path / "tuned", 3)

    result = extract(base, other, tmp_path / "out", 3)

    assert result.relative_error is not None
    assert result.relative_error < 1e-6
    model: Any = PeftModel.from_pretrained(load(base), str(tmp_path / "out")).merge_and_unload()
    theirs = load(other).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_smaller_rank_leaves_what_the_singular_values_say(base: Path, tmp_path: Path) -> None:
    other = tuned(base, tmp_path / "tuned", 8)

    result = extract(base, other, tmp_path / "out", 4)

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    before, after = load_file(base / "model.safetensors"), load_file(other / "model.safetensors")
    left = whole = 0.0
    for name, said in manifest["left_over"]["tensors"].items():
        assert "lm_head" not in name  # it did not change
        values = torch.linalg.svdvals((after[name] - before[name]).double())
        rest = float(values[4:].norm() / values.norm())
        assert said["norm"] == pytest.approx(float(values.norm()), rel=1e-4)
        assert said["relative_error"] == pytest.approx(rest, rel=1e-3)
        left, whole = left + float((values[4:] ** 2).sum()), whole + float((values**2).sum())
    assert result.relative_error == pytest.approx((left / whole) ** 0.5, rel=1e-3)


def test_a_merge_of_it_is_the_tuned_checkpoint(base: Path, tmp_path: Path) -> None:
    other = tuned(base, tmp_path / "tuned", 2)
    extract(base, other, tmp_path / "out", 4)

    do(MergeSpec(source=str(base), target=str(tmp_path / "back"), adapters=({"path": str(tmp_path / "out")},)), NOWHERE)

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", other))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5, msg=name)


def test_other_tensors_that_differ_are_an_error_or_saved_whole(base: Path, tmp_path: Path) -> None:
    names = ("model.norm.weight", "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight")
    other = tuned(base, tmp_path / "tuned", 2, changed=names)

    with pytest.raises(BadInputError, match="save-others"):
        extract(base, other, tmp_path / "out", 2)
    extract(base, other, tmp_path / "out", 2, save_others=True)

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.embed_tokens", "model.layers.0.input_layernorm", "model.norm"]
    model: Any = PeftModel.from_pretrained(load(base), str(tmp_path / "out")).merge_and_unload()
    tokens = torch.arange(48).reshape(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, load(other)(tokens).logits, rtol=1e-4, atol=1e-3)


def test_a_megatron_checkpoint_is_compared_too(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    other = tuned(base, tmp_path / "tuned", 3)
    do(ImportSpec(source=str(other), target=str(tmp_path / "mcore")), warm_model_configs)

    extract(base, other, tmp_path / "one", 3)
    extract(base, tmp_path / "mcore", tmp_path / "two", 3)

    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_tuned_checkpoint_in_bf16_is_compared_in_fp32(base: Path, tmp_path: Path) -> None:
    """What is no linear layer differs then, by its rounding."""
    other = tuned(base, tmp_path / "tuned", 2, dtype=torch.bfloat16)

    result = extract(base, other, tmp_path / "out", 2, save_others=True, dtype="bf16")

    assert result.relative_error is not None
    assert 0 < result.relative_error < 0.01


def test_nothing_to_extract_is_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no linear layer that differs"):
        extract(base, tuned(base, tmp_path / "same", 0), tmp_path / "out", 2)


def test_another_model_is_an_error(base: Path, tmp_path: Path) -> None:
    other = tuned(base, tmp_path / "tuned", 2)
    tensors = load_file(other / "model.safetensors")
    save_file({**tensors, Q: tensors[Q][:-1].clone()}, other / "model.safetensors")

    with pytest.raises(BadInputError, match=Q):
        extract(base, other, tmp_path / "out", 2)

    save_file({name: t for name, t in tensors.items() if name != Q}, other / "model.safetensors")
    with pytest.raises(BadInputError, match="no such tensor"):
        extract(base, other, tmp_path / "out", 2)
