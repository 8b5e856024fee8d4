"""`verify: logits` of a merge: the output says what the base says with its adapters beside it, or is not published."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.peft_here import adapted, load, write_adapter
from worker.adapters.merged_source import MergedSource
from worker.adapters.peft_folder import PeftFolder
from worker.handlers.context import Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import AdapterUse, ImportSpec, MergeSpec
from worker.jobs.state import LogitsFigures
from worker.verification.unmerged import Beside

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ALL},
    "patterns": {
        "target_modules": ALL,
        "use_rslora": True,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"q_proj": 9},
    },
    "dora": {"target_modules": ALL, "use_dora": True},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_llama(tmp_path / "base", layers=2, hidden=64)
    return tmp_path / "base"


def merging(base: Path, target: Path, *adapters: Path, **fields: Any) -> MergeSpec:
    uses = tuple(AdapterUse(path=str(adapter)) for adapter in adapters)
    given: dict[str, Any] = {"source": str(base), "target": str(target), "adapters": uses, "verify": ("logits",)}
    return MergeSpec(**given | fields)


def figures(spec: MergeSpec, socket: Path) -> LogitsFigures:
    done = do(spec, socket)
    assert isinstance(done, Prepared)
    assert done.result.verified is not None
    assert done.result.verified.logits is not None
    return done.result.verified.logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_adapters_beside_a_model_add_is_what_peft_adds(base: Path, tmp_path: Path, variant: str) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])
    folder = PeftFolder.open(adapter)
    scales = {one.module: folder.config.scale(one.module) for one in folder.modules}
    tokens = torch.arange(24).reshape(2, 12)
    model = load(base)

    beside = Beside(model, [{"folder": str(adapter), "scales": scales}], "cpu")

    with torch.no_grad():
        expected = adapted(base, [adapter], torch.float32)(tokens).logits
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-3)
        beside.fold_in()
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-3)
        untouched = load(base)(tokens).logits
        assert (untouched - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("to", ["hf", "megatron"])
@pytest.mark.parametrize("variant", ["patterns", "dora"])
def test_a_merge_says_what_base_and_adapter_say(
    base: Path, tmp_path: Path, warm_model_configs: Path, variant: str, to: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **VARIANTS[variant])

    found = figures(merging(base, tmp_path / "out", adapter, to=to), warm_model_configs)

    assert 0 < found.max_abs_difference < 1e-3 * found.range
    assert found.rounded is None


def test_the_sums_of_a_merge_are_rounded_alike(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    adapters = [write_adapter(base, tmp_path / str(number), number, target_modules=ALL) for number in range(2)]

    found = figures(merging(base, tmp_path / "out", *adapters, dtype="bf16"), warm_model_configs)

    assert found.rounded is not None
    assert found.rounded.max_abs_difference < found.max_abs_difference / 10
    assert "once the weights stored as sums in fp32 are rounded as the other's, BF16" in found.bar


def test_factors_at_the_wrong_layer_are_found(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    """Each tensor is base + product, whichever product: only the model tells that it is another layer's."""
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    right = MergedSource.of

    def crossed(*given: Any) -> MergedSource:
        made = right(*given)
        return replace(made, updates=dict(zip(made.updates, list(made.updates.values())[::-1], strict=True)))

    with (
        mock.patch.object(MergedSource, "of", crossed),
        pytest.raises(BadInputError, match="a largest difference of") as caught,
    ):
        do(merging(base, tmp_path / "out", adapter), warm_model_configs)

    assert caught.value.info.code == "not_verified"
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("*.partial-*")) == []


@pytest.mark.parametrize(
    ("adapter", "fields", "named"),
    [
        ({"target_modules": ["embed_tokens"]}, {}, "embed_tokens"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, {}, "saved whole"),
        ({"target_modules": ["q_proj"]}, {"rounding": "peft"}, "rounding peft"),
    ],
)
def test_what_no_model_has_beside_it_is_refused_before_the_first_byte(
    base: Path, tmp_path: Path, adapter: dict[str, Any], fields: dict[str, Any], named: str
) -> None:
    folder = write_adapter(base, tmp_path / "adapter", **adapter)

    with pytest.raises(BadInputError, match=named) as caught:
        do(merging(base, tmp_path / "out", folder, **fields), Path("/nowhere"))

    assert caught.value.info.code == "bad_request"
    assert "verify: logits" in caught.value.info.message


def test_a_megatron_base_is_refused(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore")), warm_model_configs)

    with pytest.raises(BadInputError, match="a Megatron base"):
        do(merging(tmp_path / "mcore", tmp_path / "out", adapter), warm_model_configs)
