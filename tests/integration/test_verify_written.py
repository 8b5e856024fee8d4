"""`verify:` of a conversion: wrong output is never published, whichever way it came to be wrong."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests import quantized_folders
from tests.families.case import BY_NAME, Case, write
from tests.jobs_here import do
from tests.llama_folder import write_llama
from tests.unit.test_cli import ferry
from worker.checkpoints.extents import Item, TargetFile
from worker.engine import processes
from worker.engine.copy import copy_part
from worker.handlers import import_checkpoint
from worker.handlers.context import Answer, Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import ExportSpec, ImportSpec, VerifySpec
from worker.jobs.state import Progress, VerifyResult


def verified(outcome: Answer | Prepared) -> Any:
    assert isinstance(outcome, Prepared)
    assert outcome.result.verified is not None
    return outcome.result.verified


@pytest.mark.parametrize("name", ["llama-3.1", "mixtral", "deepseek-v3", "gpt-oss"])
def test_every_tensor_is_read_again_by_the_formats_own_libraries(
    name: str, tmp_path: Path, warm_model_configs: Path
) -> None:
    case = BY_NAME.get(name) or next(case for case in BY_NAME.values() if case.name.startswith(name[:5]))
    write(case, tmp_path / "hf")
    phases: set[str] = set()

    def hear(progress: Progress) -> None:
        phases.add(progress.phase)

    spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), verify=("tensors",))
    imported = do(spec, warm_model_configs, hear)
    back = ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "back"), verify=("tensors",))
    exported = do(back, warm_model_configs)

    assert verified(imported).tensors > 10
    assert verified(exported).tensors > 10
    assert "verifying" in phases
    manifest = json.loads((tmp_path / "mcore" / "manifest.json").read_text())
    assert manifest["result"]["verified"]["tensors"] == verified(imported).tensors


@pytest.mark.parametrize(
    ("name", "section", "which", "quantize"),
    [
        ("deepseek-v3", quantized_folders.FP8, lambda n: n.endswith("proj.weight"), quantized_folders.fp8_blocks),
        ("gpt-oss", quantized_folders.MXFP4, lambda n: n.endswith("_proj"), quantized_folders.mxfp4_experts),
        ("deepseek-v3", quantized_folders.INT4, lambda n: ".experts." in n, quantized_folders.int4_packed),
    ],
    ids=["fp8", "mxfp4", "int4"],
)
def test_dequantized_and_quantized_tensors_are_verified_too(
    name: str,
    section: dict[str, Any],
    which: Callable[[str], bool],
    quantize: quantized_folders.Quantize,
    tmp_path: Path,
    warm_model_configs: Path,
) -> None:
    case = BY_NAME[name]
    sizes: dict[str, object] = {"hidden_size": 64, "intermediate_size": 96, "dtype": "bfloat16"}
    if name != "gpt-oss":
        sizes["moe_intermediate_size"] = 64
    write(Case(name=name, model_type=case.model_type, config={**case.config, **sizes}), tmp_path / "plain")
    folders = (tmp_path / "plain", tmp_path / "quantized", tmp_path / "meant")
    quantized_folders.write_quantized(*folders, section, which, quantize)
    spec = ImportSpec(source=str(tmp_path / "quantized"), target=str(tmp_path / "mcore"), verify=("tensors",))

    assert verified(do(spec, warm_model_configs)).tensors > 10

    if name != "gpt-oss":
        back = ExportSpec(
            source=str(tmp_path / "mcore"), target=str(tmp_path / "fp8"), quantize="fp8", verify=("tensors",)
        )
        assert verified(do(back, warm_model_configs)).tensors > 10


def test_a_cast_and_a_padded_vocabulary_are_verified_too(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=2, hidden=64)
    spec = ImportSpec(
        source=str(tmp_path / "hf"),
        target=str(tmp_path / "mcore"),
        dtype="bf16",
        vocab_padding=3,
        verify=("tensors",),
    )

    assert verified(do(spec, warm_model_configs)).tensors > 10


@pytest.mark.parametrize("kind", ["import", "export"])
def test_a_byte_that_changed_on_the_disk_keeps_the_output_unpublished(
    kind: str, tmp_path: Path, warm_model_configs: Path
) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    source, target = tmp_path / "hf", tmp_path / "out"
    spec: ImportSpec | ExportSpec = ImportSpec(source=str(source), target=str(target), verify=("tensors",))
    if kind == "export":
        do(ImportSpec(source=str(source), target=str(tmp_path / "mcore")), warm_model_configs)
        spec = ExportSpec(source=str(tmp_path / "mcore"), target=str(target), verify=("tensors",))

    def spoilt(part: Any, file: Path, *rest: Any) -> Any:
        segments = copy_part(part, file, *rest)
        place = next(segment for segment in segments if segment.label).offset
        with file.open("r+b") as written:
            written.seek(place)
            byte = written.read(1)[0]
            written.seek(place)
            written.write(bytes([byte ^ 1]))
        return segments

    with (
        mock.patch.object(processes, "copy_part", spoilt),
        pytest.raises(BadInputError, match="other bits in") as caught,
    ):
        do(spec, warm_model_configs)

    assert caught.value.info.code == "not_verified"
    assert not target.exists()
    assert list(tmp_path.glob("*.partial-*")) == []


Index = Callable[[Sequence[Item], Iterable[TargetFile], TargetFile], Mapping[str, bytes]]


def one_layer_more(index: Index) -> Index:
    """An index that claims a layer which no file has."""

    def claiming(items: Sequence[Item], files: Iterable[TargetFile], objects: TargetFile) -> Mapping[str, bytes]:
        deeper = [replace(item, stack=tuple(size + 1 for size in item.stack)) for item in items]
        return index(deeper, files, objects)

    return claiming


def another_name(index: Index) -> Index:
    """An index that calls a tensor otherwise."""

    def claiming(items: Sequence[Item], files: Iterable[TargetFile], objects: TargetFile) -> Mapping[str, bytes]:
        named = [replace(item, name=item.name.replace("final_layernorm", "last_layernorm")) for item in items]
        return index(named, files, objects)

    return claiming


@pytest.mark.parametrize(
    ("claiming", "named"), [(one_layer_more, "decoder.layers"), (another_name, "decoder.last_layernorm.weight")]
)
def test_an_index_that_lists_other_tensors_is_found(
    claiming: Callable[[Index], Index], named: str, tmp_path: Path, warm_model_configs: Path
) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "out"), verify=("tensors",))

    with (
        mock.patch.object(import_checkpoint, "index_files", claiming(import_checkpoint.index_files)),
        pytest.raises(BadInputError, match=f"too many or too few.*{named}") as caught,
    ):
        do(spec, warm_model_configs)

    assert caught.value.info.code == "not_verified"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["import", "export"])
def test_what_its_own_library_cannot_read_is_not_verified(kind: str, tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    spec: ImportSpec | ExportSpec = ImportSpec(
        source=str(tmp_path / "hf"), target=str(tmp_path / "out"), verify=("tensors",)
    )
    if kind == "export":
        do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)
        spec = ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "out"), verify=("tensors",))

    def torn(part: Any, file: Path, *rest: Any) -> Any:
        segments = copy_part(part, file, *rest)
        with file.open("r+b") as written:
            written.write(b"\xff" * 8)
        return segments

    with mock.patch.object(processes, "copy_part", torn), pytest.raises(BadInputError, match="own library") as caught:
        do(spec, warm_model_configs)

    assert caught.value.info.code == "not_verified"
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob("*.partial-*")) == []


@pytest.mark.parametrize("name", ["llama-3.1", "mixtral", "deepseek-v3", "nemotron-h", "qwen3-next"])
def test_both_models_give_the_same_logits(name: str, tmp_path: Path, warm_model_configs: Path) -> None:
    case = BY_NAME.get(name) or next(case for case in BY_NAME.values() if case.name.startswith(name[:5]))
    write(case, tmp_path / "hf")
    spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), verify=("logits",))

    figures = verified(do(spec, warm_model_configs)).logits

    assert 0 < figures.max_abs_difference < 1e-4 * figures.range
    assert figures.cosine > 0.9999
    assert figures.top1_agreement == 1
    compared = do(
        VerifySpec(source=str(tmp_path / "mcore"), against=str(tmp_path / "hf"), logits=True), warm_model_configs
    )
    assert isinstance(compared, Answer)
    assert isinstance(compared.result, VerifyResult)
    assert compared.result.logits
    assert compared.result.logits.max_abs_difference == pytest.approx(figures.max_abs_difference, rel=1)


def test_the_command_line_compares_logits_and_shows_them(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)

    done = ferry("verify", tmp_path / "mcore", tmp_path / "hf", "--logits", "--local")

    assert done.returncode == 0, done.stderr
    assert "logits" in done.stdout
    assert "verifying" in done.stderr


def test_the_logits_of_two_megatron_checkpoints_are_compared(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)
    for number, name in ((None, "release"), (3, "numbered")):
        spec = ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / name), iteration=number)
        do(spec, warm_model_configs)
    seen: list[Progress] = []

    spec = VerifySpec(source=str(tmp_path / "release"), against=str(tmp_path / "numbered"), logits=True)
    compared = do(spec, warm_model_configs, seen.append)

    assert isinstance(compared, Answer)
    assert isinstance(compared.result, VerifyResult)
    assert compared.result.logits
    assert compared.result.logits.max_abs_difference == 0
    verifying = [progress.done_bytes / progress.total_bytes for progress in seen if progress.phase == "verifying"]
    assert [round(part, 2) for part in verifying] == [0, 0.25, 0.5, 0.75, 1]


def test_a_mistake_that_a_round_trip_hides_is_found_by_the_logits(tmp_path: Path, warm_model_configs: Path) -> None:
    """Gate and up in each other's place: every tensor is there, every shape is right, an export puts them back."""
    import torch
    from safetensors.torch import load_file, save_file

    write_llama(tmp_path / "hf", layers=1, hidden=64)
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore")), warm_model_configs)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    mlp = "model.layers.0.mlp."
    gate, up = f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    write_llama(tmp_path / "swapped", layers=1, hidden=64)
    save_file(tensors, tmp_path / "swapped" / "model.safetensors")
    do(ImportSpec(source=str(tmp_path / "swapped"), target=str(tmp_path / "wrong")), warm_model_configs)
    assert not torch.equal(tensors[gate], tensors[up])

    with pytest.raises(BadInputError, match="a largest difference of") as caught:
        do(VerifySpec(source=str(tmp_path / "wrong"), against=str(tmp_path / "hf"), logits=True), warm_model_configs)

    assert caught.value.info.code == "not_verified"


def compared(one: Path, other: Path, socket: Path, **fields: Any) -> VerifyResult:
    outcome = do(VerifySpec(source=str(one), against=str(other), logits=True, **fields), socket)
    assert isinstance(outcome, Answer)
    assert isinstance(outcome.result, VerifyResult)
    return outcome.result


def cast_llama(folder: Path, socket: Path) -> tuple[Path, Path]:
    """A model in fp32, and imported in bf16."""
    write_llama(folder / "hf", layers=1, hidden=64)
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "cast"), dtype="bf16"), socket)
    return folder / "hf", folder / "cast"


def test_the_logits_of_a_cast_are_compared_and_its_tensors_told(tmp_path: Path, warm_model_configs: Path) -> None:
    one, other = cast_llama(tmp_path, warm_model_configs)

    result = compared(one, other, warm_model_configs, logits_tolerance=0.05, least_top1=0.8)

    assert result.differing == result.tensors == 12
    assert len(result.first_differing) == 3
    assert result.logits
    assert 1e-4 < result.logits.max_abs_difference / result.logits.range < 0.05
    assert 0.9 < result.logits.cosine < 1


def test_a_limit_that_was_asked_for_holds_for_a_cast_too(tmp_path: Path, warm_model_configs: Path) -> None:
    one, other = cast_llama(tmp_path, warm_model_configs)

    with pytest.raises(BadInputError) as caught:
        compared(one, other, warm_model_configs, logits_tolerance=0.001)

    assert caught.value.info.code == "not_verified"
    assert "a largest difference of" in caught.value.info.found
    assert "12 of 12 tensors" in caught.value.info.found
    assert "at most 0.001 of the range" in caught.value.info.expected
    assert "as asked" in caught.value.info.expected
    assert "--tolerance" in caught.value.info.message


def test_a_least_agreement_alone_can_refuse(tmp_path: Path, warm_model_configs: Path) -> None:
    one, other = (tmp_path / name for name in ("one", "other"))
    for number, folder in enumerate((one, other)):
        write_llama(folder, layers=1 + number, hidden=64)
    settings = {"logits_tolerance": 1.0, "least_top1": 0.5}

    with pytest.raises(BadInputError, match="50% of places or more"):
        compared(one, other, warm_model_configs, **settings)


def test_fp8_is_compared_with_what_it_was_made_from(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=128, more={"torch_dtype": "bfloat16"})
    do(ImportSpec(source=str(tmp_path / "hf"), target=str(tmp_path / "mcore"), dtype="bf16"), warm_model_configs)
    spec = ExportSpec(source=str(tmp_path / "mcore"), target=str(tmp_path / "fp8"), quantize="fp8")
    do(spec, warm_model_configs)

    result = compared(tmp_path / "mcore", tmp_path / "fp8", warm_model_configs, logits_tolerance=0.6, least_top1=0.5)

    assert result.differing == 7
    assert all("proj" in name for name in result.first_differing)
    assert result.logits
    assert result.logits.max_abs_difference > 0


def test_a_tensor_that_one_lacks_differs(tmp_path: Path, warm_model_configs: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("hf", "more"):
        write_llama(tmp_path / name, layers=1, hidden=64)
    tensors = load_file(tmp_path / "more" / "model.safetensors")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, buffer: tensors["model.norm.weight"][:8].clone()}, tmp_path / "more" / "model.safetensors")

    result = compared(tmp_path / "hf", tmp_path / "more", warm_model_configs)

    assert (result.differing, result.first_differing) == (1, (buffer,))
    assert result.logits
    assert result.logits.max_abs_difference == 0


def test_limits_without_logits_are_refused(tmp_path: Path, warm_model_configs: Path) -> None:
    spec = VerifySpec(source=str(tmp_path), against=str(tmp_path), logits_tolerance=0.1)

    with pytest.raises(BadInputError, match="logits"):
        do(spec, warm_model_configs)


def test_the_command_line_tells_both_results(tmp_path: Path, warm_model_configs: Path) -> None:
    one, other = cast_llama(tmp_path, warm_model_configs)

    strict = ferry("verify", one, other, "--logits", "--tolerance", "0.001", "--local")
    loose = ferry("verify", one, other, "--logits", "--tolerance", "0.05", "--top1", "0.8", "--local")

    assert strict.returncode != 0
    assert "12 of 12 tensors" in strict.stderr
    assert loose.returncode == 0, loose.stderr
    assert "12 tensors differ: " in loose.stdout
    assert " and 9 more" in loose.stdout
    assert "the same first choice" in loose.stdout
