"""`verify:` of merges, adapters and setups: each says what was found, and what is wrong stays unpublished."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.families.case import BY_NAME, write
from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.megatron_adapter import fused, save
from tests.peft_here import write_adapter
from worker.engine import processes
from worker.engine.copy import copy_part
from worker.handlers.context import Answer, Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import PeftSettings, SetupSpec
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    AdapterUse,
    ImportSpec,
    JobSpec,
    MergeSpec,
)
from worker.jobs.state import Verified

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def verified(outcome: Answer | Prepared) -> Verified:
    assert isinstance(outcome, Prepared)
    assert outcome.result.verified is not None
    return outcome.result.verified


def spoiling(label: str) -> Any:
    """Copies that flip a bit in the middle of the first tensor whose name ends so, after it was digested."""

    def spoilt(part: Any, file: Path, *rest: Any) -> Any:
        segments = copy_part(part, file, *rest)
        for segment in segments:
            if segment.label and label in segment.label and segment.length:
                with file.open("r+b") as written:
                    written.seek(segment.offset + segment.length // 2 // 4 * 4)
                    byte = written.read(1)[0]
                    written.seek(-1, 1)
                    written.write(bytes([byte ^ 1]))
        return segments

    return mock.patch.object(processes, "copy_part", spoilt)


def stays_unpublished(spec: JobSpec, socket: Path, label: str, named: str) -> None:
    """A flipped bit is found, its tensor named, and nothing is left."""
    target = Path(str(getattr(spec, "target")))  # noqa: B009  # of those kinds that have one

    with spoiling(label), pytest.raises(BadInputError) as caught:
        do(spec, socket)

    assert caught.value.info.code == "not_verified"
    assert named in caught.value.info.message
    assert not target.exists()
    assert list(target.parent.glob("*.partial-*")) == []


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_llama(tmp_path / "base", layers=2, hidden=64)
    return tmp_path / "base"


def merging(base: Path, target: Path, *adapters: Path, **fields: Any) -> MergeSpec:
    uses = tuple(AdapterUse(path=str(adapter)) for adapter in adapters)
    given: dict[str, Any] = {"source": str(base), "target": str(target), "adapters": uses, "verify": ("tensors",)}
    return MergeSpec(**given | fields)


MERGES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ALL},
    "dora": {"target_modules": ALL, "use_dora": True},
    "dora embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "fan_in_fan_out": {"target_modules": ["k_proj", "down_proj"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("to", ["hf", "megatron"])
@pytest.mark.parametrize("variant", MERGES)
def test_a_merge_is_worked_out_again(
    base: Path, tmp_path: Path, warm_model_configs: Path, variant: str, to: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **MERGES[variant])

    done = do(merging(base, tmp_path / "out", adapter, to=to), warm_model_configs)

    assert (verified(done).tensors or 0) > 10
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["result"]["verified"]["tensors"] == verified(done).tensors


@pytest.mark.parametrize("fields", [{}, {"rounding": "peft"}, {"dtype": "bf16"}, {"dtype": "fp16"}], ids=str)
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_roundings_of_a_merge_are_allowed_for(
    base: Path, tmp_path: Path, warm_model_configs: Path, variant: str, fields: dict[str, Any]
) -> None:
    import torch

    adapters = [
        write_adapter(base, tmp_path / str(number), number, dtype=torch.bfloat16, **MERGES[variant])
        for number in range(2)
    ]

    done = do(merging(base, tmp_path / "out", *adapters, **fields), warm_model_configs)

    assert (verified(done).tensors or 0) > 10


@pytest.mark.parametrize("combine", ["linear", "cat", "svd"])
def test_combined_adapters_are_worked_out_again(
    base: Path, tmp_path: Path, warm_model_configs: Path, combine: str
) -> None:
    adapters = [write_adapter(base, tmp_path / str(number), number, target_modules=ALL) for number in range(2)]

    done = do(merging(base, tmp_path / "out", *adapters, combine=combine), warm_model_configs)

    assert (verified(done).tensors or 0) > 10


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "glm4-moe-mtp"])
@pytest.mark.parametrize("start", ["hf", "megatron"])
def test_merges_of_other_families_and_of_megatron_bases_are_worked_out_again(
    tmp_path: Path, warm_model_configs: Path, name: str, start: str
) -> None:
    write(BY_NAME[name], tmp_path / "base")
    fields: dict[str, Any] = {"target_modules": ["q_proj"]}
    if name != "glm4-moe-mtp":
        fields["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", **fields)
    source = tmp_path / "base"
    if start == "megatron":
        do(ImportSpec(source=str(source), target=str(tmp_path / "mcore")), warm_model_configs)
        source = tmp_path / "mcore"

    for to in ("hf", "megatron"):
        done = do(merging(source, tmp_path / to, adapter, to=to), warm_model_configs)
        assert (verified(done).tensors or 0) > 10


@pytest.mark.parametrize("to", ["hf", "megatron"])
@pytest.mark.parametrize("label", ["embed", "proj"], ids=["untouched", "touched"])
def test_a_merge_that_changed_on_the_disk_stays_unpublished(
    base: Path, tmp_path: Path, warm_model_configs: Path, to: str, label: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "o_proj"])
    ours = {
        "hf": {"embed": "embed_tokens", "proj": "o_proj"},
        "megatron": {"embed": "embedding", "proj": "linear_proj"},
    }

    stays_unpublished(
        merging(base, tmp_path / "out", adapter, to=to), warm_model_configs, ours[to][label], ours[to][label]
    )


def test_a_sum_that_is_wrong_from_the_start_is_found_without_digests(
    base: Path, tmp_path: Path, warm_model_configs: Path
) -> None:
    """Arithmetic that forgets a part of the scale: the digests are those of what was made, wrong as it is."""
    from worker.engine import low_rank

    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    right = low_rank.updated

    def wrong(operation: Any, operands: Any, first: int, rows: int) -> Any:
        made = right(operation, operands, first, rows).copy()
        made.view("float32")[0] *= 1 + 1e-5
        return made

    with (
        mock.patch.object(low_rank, "updated", wrong),
        mock.patch("worker.engine.arithmetic.updated", wrong, create=True),
        pytest.raises(BadInputError, match="q_proj") as caught,
    ):
        do(merging(base, tmp_path / "out", adapter), warm_model_configs)

    assert caught.value.info.code == "not_verified"
    assert not (tmp_path / "out").exists()


ADAPTERS: dict[str, dict[str, Any]] = {
    "fused": {"target_modules": ["o_proj", "down_proj"]},
    "canonical": {"target_modules": ALL},
    "ranks and scales": {"target_modules": ALL, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 1}},
    "dora": {"target_modules": ALL, "use_dora": True},
}


def importing(base: Path, adapter: Path, target: Path, **fields: Any) -> AdapterImportSpec:
    given: dict[str, Any] = {"source": str(adapter), "target": str(target), "base": str(base), "verify": ("tensors",)}
    return AdapterImportSpec(**given | fields)


@pytest.mark.parametrize("variant", ADAPTERS)
@pytest.mark.parametrize("form", ["auto", "fused"])
def test_an_adapter_is_read_again_on_both_ways(
    base: Path, tmp_path: Path, warm_model_configs: Path, variant: str, form: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", **ADAPTERS[variant])

    imported = do(importing(base, adapter, tmp_path / "mcore", form=form), warm_model_configs)
    back = AdapterExportSpec(
        source=str(tmp_path / "mcore"), target=str(tmp_path / "back"), base=str(base), verify=("tensors",)
    )

    assert (verified(imported).tensors or 0) > 3
    assert (verified(do(back, warm_model_configs)).tensors or 0) > 3


@pytest.mark.parametrize("label", ["linear_in", "linear_out"])
def test_an_imported_adapter_that_changed_on_the_disk_stays_unpublished(
    base: Path, tmp_path: Path, warm_model_configs: Path, label: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL)

    stays_unpublished(importing(base, adapter, tmp_path / "out"), warm_model_configs, label, label)


def test_an_exported_adapter_that_changed_on_the_disk_stays_unpublished(
    tmp_path: Path, warm_model_configs: Path
) -> None:
    write(BY_NAME["gqa"], tmp_path / "base")
    source = save(tmp_path / "mcore", fused(4), type="lora", dim=4, alpha=8)
    spec = AdapterExportSpec(
        source=str(source), target=str(tmp_path / "out"), base=str(tmp_path / "base"), verify=("tensors",)
    )

    stays_unpublished(spec, warm_model_configs, "lora_B", "lora_B")


def test_an_adapter_with_a_wrong_scale_adds_something_else(
    base: Path, tmp_path: Path, warm_model_configs: Path
) -> None:
    from worker.handlers import adapter_import

    adapter = write_adapter(base, tmp_path / "adapter", target_modules=ALL)
    right = adapter_import.mcore_tensors

    def doubled(*given: Any) -> Any:
        made = right(*given)
        return replace(made, config=made.config.model_copy(update={"alpha": 2 * made.config.alpha}))

    with (
        mock.patch.object(adapter_import, "mcore_tensors", doubled),
        pytest.raises(BadInputError, match=r"model\.layers\.0\.mlp\.down_proj") as caught,
    ):
        do(importing(base, adapter, tmp_path / "out"), warm_model_configs)

    assert caught.value.info.code == "not_verified"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("start", ["hf", "megatron"])
def test_an_extracted_adapter_leaves_what_was_reported(
    base: Path, tmp_path: Path, warm_model_configs: Path, start: str
) -> None:
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    do(merging(base, tmp_path / "tuned", adapter, verify=()), warm_model_configs)
    if start == "megatron":
        do(ImportSpec(source=str(tmp_path / "tuned"), target=str(tmp_path / "mcore")), warm_model_configs)
    tuned = tmp_path / ("tuned" if start == "hf" else "mcore")
    given: dict[str, Any] = {"source": str(base), "tuned": str(tuned), "rank": 2, "verify": ("tensors",)}

    done = do(AdapterExtractSpec(target=str(tmp_path / "out"), **given), warm_model_configs)

    assert verified(done).tensors == 8
    stays_unpublished(
        AdapterExtractSpec(target=str(tmp_path / "again"), **given), warm_model_configs, "lora_A", "q_proj.lora_A"
    )


def setting_up(source: Path, target: Path, *verify: str, **fields: Any) -> SetupSpec:
    return SetupSpec(**{"source": str(source), "target": str(target), "verify": verify, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dtype": "bf16"},
        {"init": "random"},
        {"profile": "megatron-bridge", "peft": PeftSettings(type="dora", dim=4, init_adapter=True)},
    ],
    ids=["imported", "cast", "drawn", "with an adapter"],
)
def test_a_setups_base_and_adapter_are_read_again(
    base: Path, tmp_path: Path, warm_model_configs: Path, fields: dict[str, Any]
) -> None:
    done = do(setting_up(base, tmp_path / "out", "tensors", **fields), warm_model_configs)

    assert isinstance(done, Prepared)
    assert verified(done).tensors == done.result.tensors > 10


def test_a_base_that_is_used_again_is_read_again(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    first = do(setting_up(base, tmp_path / "out", "tensors"), warm_model_configs)
    weights = next((tmp_path / "out" / "release").glob("__0_*.distcp"))

    again = do(setting_up(base, tmp_path / "out", "tensors", on_exists="reuse"), warm_model_configs)

    assert isinstance(again, Prepared)
    assert again.result.bytes == 0
    assert verified(again).tensors == verified(first).tensors
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes([255]))
    with pytest.raises(BadInputError, match="other bits in") as caught:
        do(setting_up(base, tmp_path / "out", "tensors", on_exists="reuse"), warm_model_configs)
    assert caught.value.info.code == "not_verified"


@pytest.mark.parametrize("label", ["linear_proj.weight", "adapter.linear_out"])
def test_a_setup_that_changed_on_the_disk_stays_unpublished(
    base: Path, tmp_path: Path, warm_model_configs: Path, label: str
) -> None:
    fields = {"profile": "megatron-bridge", "peft": PeftSettings(dim=4, init_adapter=True)}

    stays_unpublished(setting_up(base, tmp_path / "out", "tensors", **fields), warm_model_configs, label, label)


def test_a_setups_base_says_what_hfs_model_says(base: Path, tmp_path: Path, warm_model_configs: Path) -> None:
    done = do(setting_up(base, tmp_path / "out", "logits", "tensors"), warm_model_configs)

    figures = verified(done).logits
    assert figures is not None
    assert 0 < figures.max_abs_difference < 1e-4 * figures.range
    assert verified(done).tensors


@pytest.mark.parametrize("way", ["link", "reference"])
def test_a_base_that_was_there_is_held_against_its_manifest(
    base: Path, tmp_path: Path, warm_model_configs: Path, way: str
) -> None:
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore")), warm_model_configs)
    spec = setting_up(tmp_path / "mcore", tmp_path / "out", "tensors", base=way)

    assert (verified(do(spec, warm_model_configs)).tensors or 0) > 10

    weights = next((tmp_path / "mcore" / "release").glob("__0_*.distcp"))
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(bytes([255]))
    with pytest.raises(BadInputError, match=r"__0_0\.distcp") as caught:
        do(spec.model_copy(update={"target": str(tmp_path / "again")}), warm_model_configs)
    assert caught.value.info.code == "not_verified"
    assert not (tmp_path / "again").exists()


def _without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _with_more(folder: Path) -> None:
    (folder / "release" / "more.bin").write_bytes(b"more")


@pytest.mark.parametrize(
    ("change", "named"), [(_without_manifest, "without manifest.json"), (_with_more, "release/more.bin")]
)
def test_a_base_that_no_manifest_lists_is_refused_before_the_first_byte(
    base: Path, tmp_path: Path, warm_model_configs: Path, change: Callable[[Path], None], named: str
) -> None:
    do(ImportSpec(source=str(base), target=str(tmp_path / "mcore")), warm_model_configs)
    change(tmp_path / "mcore")

    with pytest.raises(BadInputError, match=named) as caught:
        do(setting_up(tmp_path / "mcore", tmp_path / "out", "tensors"), warm_model_configs)

    assert caught.value.info.code == "bad_request"


@pytest.mark.parametrize("fields", [{"init": "random"}, {}], ids=["drawn", "megatron"])
def test_logits_that_nothing_can_be_compared_with_are_refused(
    base: Path, tmp_path: Path, warm_model_configs: Path, fields: dict[str, Any]
) -> None:
    source = base
    if not fields:
        source = tmp_path / "mcore"
        do(ImportSpec(source=str(base), target=str(source)), warm_model_configs)

    with pytest.raises(BadInputError, match="verify: logits") as caught:
        do(setting_up(source, tmp_path / "out", "logits", **fields), warm_model_configs)

    assert caught.value.info.code == "bad_request"
