"""A directory that a trainer starts from: what is in it, what is refused, and what a second setup costs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs_here import do, set_up
from tests.jobs_here import planned_setup as planned
from tests.llama_folder import write_llama
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.engine.reading import read_extent
from worker.integration.peft import create_peft
from worker.jobs.errors import BadInputError, ConflictError
from worker.jobs.setup_spec import Parallelism, PeftSettings
from worker.jobs.spec import ExportSpec, ImportSpec


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("setup") / "llama"
    write_llama(folder, layers=4, hidden=64)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def imported(llama: Path, warm_model_configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("imported") / "megatron"
    do(ImportSpec(source=str(llama), target=str(target), iteration=7), warm_model_configs)
    return target


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def tensors(folder: Path) -> dict[str, bytes]:
    opened = TorchDistFolder.open(folder)
    return {name: b"".join(map(read_extent, opened.whole(name))) for name in opened.tensors}


COMMON = {
    "README.md",
    "manifest.json",
    "model_config.json",
    "ddp_config.json",
    "hf/config.json",
    "hf/tokenizer.json",
}


def test_a_setup_from_hf_holds_base_configs_and_tokenizer(
    llama: Path, imported: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "run"

    result = set_up(warm_model_configs, llama, target, parallelism=Parallelism(tp_size=2, pp_size=2))

    base = {"release/.metadata", "release/metadata.json", "release/run_config.yaml", "release/__0_0.distcp"}
    assert files_in(target) >= COMMON | base | {"arguments.txt", "start.sh", "latest_checkpointed_iteration.txt"}
    assert (target / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert tensors(target / "release") == tensors(imported / "iter_0000007")
    assert result.kind == "setup"
    transformer = json.loads((target / "model_config.json").read_text())["transformer"]
    assert (transformer["tensor_model_parallel_size"], transformer["pipeline_model_parallel_size"]) == (2, 2)
    assert transformer["sequence_parallel"] is True
    assert transformer["pipeline_dtype"] == "float32"


def test_run_config_alone_says_enough_for_an_export(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    target, back = tmp_path / "run", tmp_path / "back"
    set_up(warm_model_configs, llama, target, profile="megatron-bridge")
    written = yaml.safe_load((target / "release/run_config.yaml").read_text())
    bare = tmp_path / "bare"
    shutil.copytree(target / "release", bare / "release")
    (bare / "latest_checkpointed_iteration.txt").write_text("release")

    do(ExportSpec(source=str(bare), target=str(back)), warm_model_configs)

    assert written["model"]["tensor_model_parallel_size"] == 1
    assert written["checkpoint"]["save_rng"] is False
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (back, llama))
    assert {name: ours[name] for name in ("hidden_size", "num_hidden_layers", "rms_norm_eps", "vocab_size")} == {
        name: theirs[name] for name in ("hidden_size", "num_hidden_layers", "rms_norm_eps", "vocab_size")
    }


@pytest.mark.parametrize("profile", ["megatron-lm", "megatron-bridge", "verl", "slime", "nemo-rl"])
def test_a_manifest_lists_every_file_with_its_size(
    llama: Path, warm_model_configs: Path, tmp_path: Path, profile: str
) -> None:
    target = tmp_path / "run"

    set_up(warm_model_configs, llama, target, profile=profile, dtype="bf16")

    listed = json.loads((target / "manifest.json").read_text())["files"]
    assert {name: file["bytes"] for name, file in listed.items()} == {
        name: (target / name).stat().st_size for name in files_in(target) - {"manifest.json"}
    }
    assert len((target / "README.md").read_text().splitlines()) == 5


def test_a_megatron_base_is_linked_and_not_copied(imported: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"

    result = set_up(warm_model_configs, imported, target)

    assert result.bytes == 0
    assert os.path.samefile(target / "release/__0_0.distcp", imported / "iter_0000007/__0_0.distcp")
    assert (target / "latest_checkpointed_iteration.txt").read_text() == "release"
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (target, imported))
    assert ours["tensors"] == theirs["tensors"]
    assert ours["files"]["release/__0_0.distcp"] == theirs["files"]["iter_0000007/__0_0.distcp"]


def test_a_linked_base_without_a_manifest_is_read_for_its_digests(
    imported: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    bare, target = tmp_path / "bare", tmp_path / "run"
    shutil.copytree(imported, bare)
    (bare / "manifest.json").unlink()

    set_up(warm_model_configs, bare, target)

    ours, theirs = (json.loads((folder / "manifest.json").read_text())["files"] for folder in (target, imported))
    name = "__0_0.distcp"
    assert ours[f"release/{name}"]["bytes"] == theirs[f"iter_0000007/{name}"]["bytes"]
    assert ours[f"release/{name}"]["segments"]


def test_a_megatron_base_may_stay_where_it_is(imported: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"

    set_up(warm_model_configs, imported, target, base="reference")

    assert not list(target.glob("**/*.distcp"))
    assert f"--pretrained-checkpoint {imported}\n" in (target / "arguments.txt").read_text()
    assert "--ckpt-step" not in (target / "start.sh").read_text()


def test_a_run_config_lies_beside_the_weights_alone(
    llama: Path, imported: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    """Megatron-Bridge takes any folder with one for an iteration's, and looks for the weights in it."""
    here, elsewhere, peft = tmp_path / "here", tmp_path / "elsewhere", PeftSettings(dim=4, init_adapter=True)

    set_up(warm_model_configs, llama, here, profile="megatron-bridge", peft=peft)
    set_up(warm_model_configs, imported, elsewhere, base="reference")

    assert {str(path.relative_to(here)) for path in here.rglob("run_config.yaml")} == {
        "release/run_config.yaml",
        "adapter/release/run_config.yaml",
    }
    assert [path.parent for path in elsewhere.rglob("run_config.yaml")] == [elsewhere]


def test_the_iteration_that_was_asked_for_is_the_one_that_is_loaded(
    imported: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    base, target = tmp_path / "base", tmp_path / "run"
    shutil.copytree(imported, base)
    (base / "latest_checkpointed_iteration.txt").write_text("30")

    set_up(warm_model_configs, base / "iter_0000007", target, base="reference")

    assert "|| ARGUMENTS+=(--ckpt-step 7)" in (target / "start.sh").read_text()


def test_an_iteration_beside_a_release_cannot_be_asked_for(imported: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(imported, base)
    (base / "latest_checkpointed_iteration.txt").write_text("release")

    with pytest.raises(BadInputError, match="iteration 7 of a base whose tracker file names another"):
        planned(base / "iter_0000007", tmp_path / "run", base="reference")


def test_bridge_needs_to_know_how_a_base_elsewhere_was_saved(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="neither run_config"):
        planned(imported, tmp_path / "run", base="reference", profile="megatron-bridge")


def test_a_second_setup_keeps_the_base(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    set_up(warm_model_configs, llama, target)
    inode = (target / "release/__0_0.distcp").stat().st_ino
    before = json.loads((target / "manifest.json").read_text())

    again = set_up(
        warm_model_configs, llama, target, on_exists="reuse", profile="nemo-rl", parallelism=Parallelism(tp_size=2)
    )

    assert again.bytes == 0
    assert (target / "release/__0_0.distcp").stat().st_ino == inode
    assert (target / "nemo_rl.yaml").exists()
    assert not (target / "arguments.txt").exists()
    after = json.loads((target / "manifest.json").read_text())
    assert after["tensors"] == before["tensors"]
    assert after["files"]["release/__0_0.distcp"] == before["files"]["release/__0_0.distcp"]
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_setup_of_another_source_does_not_keep_the_base(
    llama: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    other, target = tmp_path / "other", tmp_path / "run"
    shutil.copytree(llama, other)
    os.utime(other / "model.safetensors", ns=(1, 1))
    set_up(warm_model_configs, llama, target)

    again = set_up(warm_model_configs, other, target, on_exists="reuse")

    assert again.bytes > 0


def test_a_setup_of_other_bytes_under_the_same_size_and_time_does_not_keep_the_base(
    llama: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "run"
    shutil.copytree(llama, source)
    set_up(warm_model_configs, source, target)
    before = tensors(target / "release")
    weights = source / "model.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    data = bytearray(weights.read_bytes())
    data[-2:] = b"\x80\x3f"
    weights.write_bytes(data)
    os.utime(weights, ns=times)

    again = set_up(warm_model_configs, source, target, on_exists="reuse")

    assert again.bytes > 0
    assert tensors(target / "release") != before


def test_reuse_takes_nothing_away_that_a_trainer_has_put_there(
    llama: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "run"
    set_up(warm_model_configs, llama, target)
    (target / "notes").write_text("mine")

    with pytest.raises(ConflictError, match="'notes'"):
        set_up(warm_model_configs, llama, target, on_exists="reuse")

    assert (target / "notes").read_text() == "mine"


def test_reuse_refuses_a_folder_that_no_setup_wrote(llama: Path, imported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="no setup wrote"):
        planned(llama, imported, on_exists="reuse")


def test_random_weights_follow_from_the_seed_alone(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    shutil.copy(llama / "config.json", config)

    for name, seed, fields in (("a", 1, {}), ("b", 1, {"part_bytes": 2**20}), ("c", 2, {})):
        set_up(warm_model_configs, config, tmp_path / name, init="random", seed=seed, **fields)

    one, same, other = (tensors(tmp_path / name / "release") for name in "abc")
    assert one == same
    key = "decoder.layers.mlp.linear_fc1.weight"
    assert one[key] != other[key]


@pytest.mark.parametrize("method", ["gptq", "fp8"])
def test_random_weights_do_not_ask_how_the_source_was_quantized(llama: Path, tmp_path: Path, method: str) -> None:
    config = tmp_path / "config"
    config.mkdir()
    values = json.loads((llama / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (config / "config.json").write_text(json.dumps(values))

    found = planned(config, tmp_path / "run", init="random")

    assert found["base"]["way"] == "drawn"
    assert "hf/config.json" in found["small_files"]


def test_random_weights_are_as_megatron_draws_them(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    import numpy as np

    set_up(warm_model_configs, llama, tmp_path / "run", init="random")

    found = {name: np.frombuffer(data, np.float32) for name, data in tensors(tmp_path / "run/release").items()}
    assert set(found["decoder.final_layernorm.weight"]) == {1.0}
    assert found["decoder.layers.mlp.linear_fc1.weight"].std() == pytest.approx(0.02, rel=0.02)
    scaled = 0.02 / (2 * 4) ** 0.5
    assert found["decoder.layers.mlp.linear_fc2.weight"].std() == pytest.approx(scaled, rel=0.02)
    assert abs(found["embedding.word_embeddings.weight"].mean()) < 1e-3
    layers = found["decoder.layers.mlp.linear_fc1.weight"].reshape(4, -1)
    assert len({layer.tobytes() for layer in layers}) == 4


@pytest.mark.parametrize("kind", ["lora", "canonical_lora", "dora"])
def test_a_fresh_adapter_adds_nothing_yet(llama: Path, warm_model_configs: Path, tmp_path: Path, kind: Any) -> None:
    import numpy as np

    target = tmp_path / "run"
    peft = PeftSettings(type=kind, dim=4, alpha=8, init_adapter=True)

    set_up(warm_model_configs, llama, target, profile="megatron-bridge", peft=peft)

    found = tensors(target / "adapter/release")
    assert all(not any(data) for name, data in found.items() if name.endswith("linear_out.weight"))
    drawn = [np.frombuffer(data, np.float32) for name, data in found.items() if name.endswith("linear_in.weight")]
    assert all(values.std() > 0.05 for values in drawn)
    assert (target / "adapter/latest_checkpointed_iteration.txt").read_text() == "release"
    settings = json.loads((target / "peft_config.json").read_text())
    made = create_peft(settings)
    assert made is not None
    assert (made.type, made.dim, made.alpha) == (kind, 4, 8)
    if kind == "dora":
        layer = "decoder.layers.self_attention.linear_proj"
        base = np.frombuffer(tensors(target / "release")[f"{layer}.weight"], np.float32)
        norms = np.linalg.norm(base.reshape(4, 64, -1).astype(np.float64), axis=2)
        magnitudes = np.frombuffer(found[f"{layer}.adapter.weight_magnitude"], np.float32)
        np.testing.assert_allclose(magnitudes.reshape(4, 64), norms, rtol=1e-6)


def test_a_plan_shows_parallelism_memory_and_files(llama: Path, tmp_path: Path) -> None:
    found = planned(llama, tmp_path / "run", parallelism=Parallelism(tp_size=2, pp_size=2, world_size=8))

    assert found["setup"]["parallelism"]["dp_size"] == 2
    stages = found["setup"]["memory"]["stages"]
    assert [stage["layers"] for stage in stages] == [2, 2]
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    assert all(stage["total"] == sum(stage[part] for part in parts) for stage in stages)
    assert "arguments.txt" in found["small_files"]
    assert found["base"]["way"] == "imported"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sizes", "named", "expected"),
    [
        ({"tp_size": 8}, "tp_size", "4 attention heads"),
        ({"pp_size": 3}, "pp_size", "4 layers"),
        ({"ep_size": 2}, "ep_size", "no experts"),
        ({"sequence_parallel": True}, "sequence_parallel", "tp_size above 1"),
        ({"pp_size": 2, "first_stage_layers": 4}, "pp_size", "4 layers"),
        ({"vpp_size": 2}, "vpp_size", "pp_size above 1"),
        ({"tp_size": 2, "world_size": 3}, "world_size", "a multiple of 2"),
        ({"first_stage_layers": 1}, "first_stage_layers", "larger pp_size"),
        ({"pp_size": 2, "pipeline_layout": "Et|tL"}, "pipeline_layout", "4: decoder layers"),
        ({"pipeline_layout": "Et*4L"}, "pipeline_layout", "pp_size above 1"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_its_field(
    llama: Path, tmp_path: Path, sizes: dict[str, Any], named: str, expected: str
) -> None:
    with pytest.raises(BadInputError, match=expected) as raised:
        planned(llama, tmp_path / "run", parallelism=Parallelism(**sizes))

    assert named in raised.value.info.thing


def test_a_run_that_does_not_fit_is_told_what_would(llama: Path, tmp_path: Path) -> None:
    config = tmp_path / "big"
    config.mkdir()
    values = json.loads((llama / "config.json").read_text()) | {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
    }
    (config / "config.json").write_text(json.dumps(values))

    with pytest.raises(BadInputError, match="GiB on a rank of stage 0: weights") as raised:
        planned(config, tmp_path / "run", init="random", parallelism=Parallelism(tp_size=8))

    assert raised.value.info.next_step.startswith("--tp 8 --pp ")
    assert " fits, with " in raised.value.info.next_step


def test_what_a_trainer_lacks_is_said_before_what_does_not_fit(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="use_megatron_fsdp"):
        planned(llama, tmp_path / "run", ddp={"use_megatron_fsdp": True}, micro_batch_size=10**5, gpu_bytes=2**30)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"base": "link"}, "an HF checkpoint"),
        ({"peft": {"target_modules": ["q_proj"]}}, r"peft\.target_modules: found 'q_proj', expected Megatron's names"),
        ({"ddp": {"overrides": {"overlap_grads": True}}}, "no such field"),
        ({"ddp": {"overrides": {"bucket_size": "many"}}}, "many"),
        ({"peft": {"type": "lora"}}, "lora"),
        ({"sequence_length": 4096}, "128 positions"),
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_is_written(
    llama: Path, tmp_path: Path, fields: dict[str, Any], match: str
) -> None:
    with pytest.raises(BadInputError, match=match):
        planned(llama, tmp_path / "run", **fields)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ranks_load_what_was_set_up_before_it_appears(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    result = set_up(
        warm_model_configs,
        llama,
        tmp_path / "run",
        parallelism=Parallelism(tp_size=2, pp_size=2, vpp_size=2),
        verify=("load",),
    )

    assert result.verified is not None
    assert result.verified.loaded_by == 4


@pytest.mark.slow
def test_ranks_load_a_layout_that_is_written_out(llama: Path, warm_model_configs: Path, tmp_path: Path) -> None:
    sizes = Parallelism(pp_size=2, pipeline_layout="Et|t*2||tL")

    result = set_up(warm_model_configs, llama, tmp_path / "run", parallelism=sizes, verify=("load",))

    assert result.verified is not None
    assert result.verified.loaded_by == 2
    transformer = json.loads((tmp_path / "run/model_config.json").read_text())["transformer"]
    assert transformer["pipeline_model_parallel_layout"] == "Et|t*2||tL"
    assert transformer["virtual_pipeline_model_parallel_size"] == 2
    written = yaml.safe_load((tmp_path / "run/release/run_config.yaml").read_text())
    assert written["model"]["pipeline_model_parallel_layout"] == "Et|t*2||tL"
    assert "--pipeline-model-parallel-layout 'Et|t*2||tL'\n" in (tmp_path / "run/arguments.txt").read_text()


@pytest.mark.slow
def test_a_base_that_ranks_cannot_load_is_not_published(
    imported: Path, warm_model_configs: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(imported, broken)
    data = broken / "iter_0000007/__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-2000])

    with pytest.raises(BadInputError, match="rank 0 of 1"):
        set_up(warm_model_configs, broken, tmp_path / "run", verify=("load",))

    assert not (tmp_path / "run").exists()
