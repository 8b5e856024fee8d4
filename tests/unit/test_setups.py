"""Trainers' files and memory estimates of real models, by their configs alone."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.large_stand_ins import DEEPSEEK_V3, LLAMA_8B, QWEN3_235B
from tests.trainer_runs import run_of
from worker.checkpoints.iterations import iteration_folder
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import DdpSettings, Parallelism, PeftSettings, ProfileName
from worker.setups.ddp_values import ddp_values
from worker.setups.profiles import megatron_bridge, nemo_rl, slime, verl
from worker.setups.profiles.megatron_lm import model_arguments
from worker.setups.registry import PROFILES, profile_of
from worker.setups.run_config import run_config
from worker.setups.stages import chunks_of_stages, fewest_gpus, layers_per_stage, uneven_stages
from worker.setups.trainer_run import TrainerRun
from worker.setups.yaml_text import paths_in, yaml_text

PEFT = PeftSettings(dim=8, alpha=16, target_modules=("linear_qkv", "linear_fc2"), exclude_modules=("linear_fc2",))
EVERYTHING: dict[str, Any] = {
    "parallelism": Parallelism(tp_size=2, pp_size=4, vpp_size=2, cp_size=2, first_stage_layers=4, last_stage_layers=4),
    "recompute": "full",
    "hf_weights": Path("/models/llama"),
}
LORA = {
    "parallelism": Parallelism(tp_size=2, pp_size=2, cp_size=2),
    "peft": PEFT,
    "recompute": "full",
    "hf_weights": Path("/models/llama"),
}


def test_every_trainer_has_a_profile() -> None:
    assert tuple(profile.name for profile in PROFILES) == get_args(ProfileName)


def known(name: ProfileName) -> set[str]:
    return {key.name for key in profile_of(name).keys}


def is_known(name: str, keys: set[str]) -> bool:
    return name in keys or f"{name.rpartition('.')[0]}.*" in keys


@pytest.mark.parametrize("fields", [EVERYTHING, {"recompute": "selective"}], ids=["everything", "little"])
def test_every_argument_of_megatron_lm_and_slime_is_in_their_tables(fields: dict[str, Any]) -> None:
    run = run_of(LLAMA_8B, **fields)

    assert {group[0] for group in model_arguments(run, "Megatron-LM")} <= known("megatron-lm")
    assert {group[0] for group in slime.arguments(run)} <= known("slime")


@pytest.mark.parametrize(
    "fields", [EVERYTHING, LORA, {"ddp": DdpSettings(overrides={"bucket_size": 5})}], ids=["everything", "LoRA", "DDP"]
)
def test_every_key_of_verl_and_bridge_is_in_their_tables(fields: dict[str, Any]) -> None:
    run = run_of(LLAMA_8B, **fields)

    assert all(is_known(name, known("verl")) for name, _ in verl.overrides(run))
    assert all(is_known(name, known("megatron-bridge")) for name in paths_in(megatron_bridge.document(run)))


@pytest.mark.parametrize("fields", [LORA, {"parallelism": Parallelism(pp_size=4, first_stage_layers=5)}], ids=str)
def test_every_key_of_nemo_rl_is_in_its_table(fields: dict[str, Any]) -> None:
    run = run_of(LLAMA_8B, **fields)

    assert set(paths_in(nemo_rl.document(run))) | {"defaults"} <= known("nemo-rl")


@pytest.mark.parametrize("name", get_args(ProfileName))
def test_files_read_back(name: ProfileName) -> None:
    run = run_of(LLAMA_8B, parallelism=Parallelism(tp_size=4), hf_weights=Path("/models/my llama"))

    for path, data in profile_of(name).files(run).items():
        text = data.decode()
        if path.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
        elif path.endswith(".txt") and name != "verl":
            assert shlex.split(text)[0].startswith("--")


def test_verl_finds_the_base_and_its_parallelism() -> None:
    run = run_of(LLAMA_8B, Path("/runs/a"), parallelism=Parallelism(tp_size=4, pp_size=2), hf_weights=Path("/hf"))

    found = dict(verl.overrides(run))

    assert found["actor_rollout_ref.actor.megatron.dist_checkpointing_path"] == "/runs/a/release"
    assert found["actor_rollout_ref.ref.megatron.tensor_model_parallel_size"] == 4
    assert found["actor_rollout_ref.actor.megatron.pipeline_model_parallel_size"] == 2
    assert found["actor_rollout_ref.model.path"] == "/hf"
    assert "actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size" not in found


def test_trainers_of_megatron_bridge_are_told_all_of_an_adapter() -> None:
    """Left out, Bridge would take `canonical_lora` for names of fused layers, and one adapter for all experts."""
    run = run_of(
        QWEN3_235B,
        Path("/runs/a"),
        peft=PeftSettings(type="canonical_lora", dim=8, exclude_modules=("linear_qkv", "linear_fc2")),
        hf_weights=Path("/hf"),
        adapter=Path("/runs/a/adapter"),
    )

    bridge, found = megatron_bridge.document(run)["peft"], dict(verl.overrides(run))

    assert bridge == {
        "target_modules": ("linear_fc1_gate", "linear_fc1_up", "linear_proj"),
        "dim": 8,
        "alpha": 32,
        "dropout": 0.0,
        "dropout_position": "pre",
        "share_expert_adapters": False,
    }
    assert found["actor_rollout_ref.model.lora.target_modules"] == ("linear_fc1_gate", "linear_fc1_up", "linear_proj")
    assert found["+actor_rollout_ref.model.lora.share_expert_adapters"] is False
    assert found["actor_rollout_ref.model.lora.adapter_path"] == "/runs/a/adapter/release"


def test_verl_is_told_what_it_has_no_default_for() -> None:
    run = run_of({**LLAMA_8B, "torch_dtype": "float16"}, parallelism=Parallelism(tp_size=4), hf_weights=Path("/hf"))

    found = dict(verl.overrides(run))

    assert found["actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu"] == 1
    assert found["actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu"] == 1
    assert found["actor_rollout_ref.rollout.name"] == "vllm"
    assert found["actor_rollout_ref.rollout.tensor_model_parallel_size"] == 4
    assert found["algorithm.adv_estimator"] == "grpo"
    for part in ("actor.megatron", "ref.megatron", "rollout"):
        assert found[f"actor_rollout_ref.{part}.dtype"] == "float16"


def test_verl_s_overrides_are_quoted_as_hydra_reads_them() -> None:
    text = profile_of("verl").files(run_of(LLAMA_8B, Path("/my runs/it's=1"), hf_weights=Path("/hf/llama-3.1")))

    lines = text["verl_overrides.txt"].decode().splitlines()

    assert "actor_rollout_ref.model.path=/hf/llama-3.1" in lines
    assert "actor_rollout_ref.model.tokenizer_path='/my runs/it\\'s=1/hf'" in lines


@pytest.mark.parametrize(("profile", "key"), [("slime", "--ref-ckpt-step"), ("megatron-lm", "--ckpt-step")])
def test_a_step_is_named_where_the_tracker_file_names_another(profile: ProfileName, key: str) -> None:
    asked, other = (
        b"".join(profile_of(profile).files(run_of(LLAMA_8B, iteration=7, tracked=tracked)).values()).decode()
        for tracked in ("7", "30")
    )

    assert key not in asked
    assert f"{key} 7" in other


@pytest.mark.parametrize(("iteration", "tracked"), [(None, "30"), (7, "release"), (0, "30")])
def test_a_step_that_megatron_cannot_be_told_is_refused(iteration: int | None, tracked: str) -> None:
    for profile in ("megatron-lm", "slime"):
        with pytest.raises(BadInputError, match="tracker file names another"):
            profile_of(profile).files(run_of(LLAMA_8B, iteration=iteration, tracked=tracked))


def test_other_trainers_take_the_iteration_by_its_folder() -> None:
    run = run_of(LLAMA_8B, Path("/a"), base=Path("/base"), iteration=7, tracked="30", hf_weights=Path("/hf"))

    bridge = yaml.safe_load(yaml_text(megatron_bridge.document(run)))

    assert bridge["checkpoint"]["pretrained_checkpoint"] == "/base/iter_0000007"
    assert dict(verl.overrides(run))["actor_rollout_ref.ref.megatron.dist_checkpointing_path"] == "/base/iter_0000007"
    assert b"/base/iter_0000007/." in profile_of("nemo-rl").files(run)["start.sh"]


def test_a_run_config_says_what_bridge_s_own_reader_needs() -> None:
    """Top-level class and every section without a default, a provider, and no field that is not said."""
    run = run_of(QWEN3_235B, Path("/a"), ddp=DdpSettings(overrides={"bucket_size": 5}))

    found = yaml.safe_load(run_config(run))

    assert found["_target_"] == "megatron.bridge.training.config.ConfigContainer"
    required = {"train", "model", "optimizer", "scheduler", "dataset", "logger", "tokenizer", "checkpoint"}
    assert required <= found.keys()
    assert found["model"]["_target_"] == "megatron.bridge.models.gpt_provider.GPTModelProvider"
    assert found["model"]["transformer_layer_spec"]["_partial_"] is True
    assert found["model"]["params_dtype"] == {"_target_": "torch.bfloat16", "_call_": False}
    assert found["ddp"] == {
        "_target_": "megatron.bridge.training.config.DistributedDataParallelConfig",
        "grad_reduce_in_fp32": True,
        "check_for_nan_in_grad": True,
        "use_distributed_optimizer": True,
        "bucket_size": 5,
    }


def test_nemo_rl_is_told_the_model_s_own_fusions() -> None:
    found = nemo_rl.document(run_of(DEEPSEEK_V3))["policy"]

    assert isinstance(found, dict)
    assert found["megatron_cfg"]["apply_rope_fusion"] is False


def test_verl_loads_the_base_of_adapters_from_hf() -> None:
    found = dict(verl.overrides(run_of(LLAMA_8B, **LORA)))

    assert found["actor_rollout_ref.actor.megatron.use_dist_checkpointing"] is False
    assert "actor_rollout_ref.actor.megatron.dist_checkpointing_path" not in found
    assert found["actor_rollout_ref.model.path"] == "/models/llama"


def test_megatron_lm_and_slime_are_told_the_vocabulary() -> None:
    run = run_of({**LLAMA_8B, "vocab_size": 257}, parallelism=Parallelism(tp_size=2))

    for groups in (model_arguments(run, "Megatron-LM"), slime.arguments(run)):
        found = dict(group for group in groups if len(group) == 2)
        assert (found["--vocab-size"], found["--padded-vocab-size"]) == ("257", "258")


def stand_in(folder: Path, name: str) -> None:
    """A command that writes down its environment and what it was given."""
    command = folder / name
    command.write_text('#!/bin/sh\necho "$CUDA_DEVICE_MAX_CONNECTIONS" > told; printf "%s\\n" "$@" >> told\n')
    command.chmod(0o755)


def start(profile: ProfileName, run: TrainerRun, folder: Path, command: str) -> list[str]:
    """Of the profile's start script, run in `folder` beside a stand-in of what it starts."""
    run.target.mkdir(parents=True)
    for path, data in profile_of(profile).files(run).items():
        (run.target / path).write_bytes(data)
    (folder / "examples/configs").mkdir(parents=True)
    stand_in(folder, command)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "DATA": "/data/my text"}
    subprocess.run(["bash", str(run.target / "start.sh")], cwd=folder, env=environment, check=True)
    return (folder / "told").read_text().splitlines()


def test_megatron_lm_starts_with_arguments_as_they_are(tmp_path: Path) -> None:
    run = run_of(LLAMA_8B, tmp_path / "my run", parallelism=Parallelism(tp_size=2, world_size=12))

    connections, *words = start("megatron-lm", run, tmp_path, "torchrun")

    assert connections == "1"
    assert words[:4] == ["--nproc-per-node", "6", "--nnodes", "2"]
    assert {"pretrain_gpt.py", str(tmp_path / "my run"), "/data/my text"} <= set(words)


@pytest.mark.parametrize(("iteration", "name"), [(None, "release"), (0, "iter_0000000"), (30, "iter_0000030")])
def test_nemo_rl_finds_the_base_as_its_own_import(tmp_path: Path, iteration: int | None, name: str) -> None:
    base, hf = tmp_path / "base", tmp_path / "hf"
    (base / name).mkdir(parents=True)
    (base / name / ".metadata").write_text("weights")
    (base / name / "run_config.yaml").write_text("another run's")
    target = tmp_path / "my run"
    run = run_of(LLAMA_8B, target, base=base, hf_weights=hf, iteration=iteration)

    start("nemo-rl", run, tmp_path, "uv")

    imported = tmp_path / "my run-nemo-rl" / f"model_{str(hf).replace('/', '_')}"
    assert iteration_folder(imported).name == "release"
    assert (iteration_folder(imported) / ".metadata").read_text() == "weights"
    assert (imported / "iter_0000000/run_config.yaml").readlink() == target / "run_config.yaml"
    assert (base / name / "run_config.yaml").read_text() == "another run's"


@pytest.mark.parametrize(
    ("name", "fields", "found"),
    [
        ("megatron-lm", {"peft": PEFT}, "lora"),
        ("megatron-lm", {"ddp": DdpSettings(use_megatron_fsdp=True)}, "true"),
        ("megatron-lm", {"ddp": DdpSettings(overrides={"num_buckets": 3})}, "3"),
        ("slime", {"peft": PEFT}, "lora"),
        ("verl", {"ddp": DdpSettings(use_megatron_fsdp=True)}, "true"),
        ("verl", {"peft": PEFT}, "lora"),
        ("slime", {"ddp": DdpSettings(use_distributed_optimizer=False)}, "false"),
        ("megatron-lm", {"sequence_length": 10**6}, "1000000"),
        ("nemo-rl", {"ddp": DdpSettings(overrides={"average_in_collective": True})}, "true"),
        ("nemo-rl", {"peft": PeftSettings(type="dora")}, "dora"),
        ("nemo-rl", {"recompute": "selective"}, "selective"),
        ("nemo-rl", {"peft": PeftSettings(exclude_modules=("*.experts.*",))}, "*.experts.*"),
        ("megatron-bridge", {"peft": PeftSettings(exclude_modules=("*.experts.*",))}, "*.experts.*"),
        ("nemo-rl", {"parallelism": Parallelism(pp_size=2, vpp_size=2)}, "2"),
    ],
)
def test_what_a_trainer_has_no_setting_for_is_refused(name: ProfileName, fields: dict[str, Any], found: str) -> None:
    with pytest.raises(BadInputError) as raised:
        profile_of(name).files(run_of(LLAMA_8B, **fields))

    assert raised.value.info.found == found
    assert raised.value.info.next_step


def test_a_readme_has_three_lines_on_how_to_start() -> None:
    for profile in PROFILES:
        lines = profile.start(run_of(LLAMA_8B))
        assert all(line and "\n" not in line for line in lines)


def test_fsdp_shards_weights_gradients_and_optimizer() -> None:
    assert ddp_values(DdpSettings(use_megatron_fsdp=True))["data_parallel_sharding_strategy"] == "optim_grads_params"


@pytest.mark.parametrize(
    ("layers", "sizes", "expected"),
    [
        (8, {"pp_size": 4}, (2, 2, 2, 2)),
        (8, {"pp_size": 3}, None),
        (61, {"pp_size": 4, "first_stage_layers": 14, "last_stage_layers": 15}, (14, 16, 16, 15)),
        (61, {"pp_size": 4, "last_stage_layers": 13}, (16, 16, 16, 13)),
        (8, {"pp_size": 2, "vpp_size": 2}, (4, 4)),
        (6, {"pp_size": 2, "vpp_size": 2}, None),
        (4, {"pp_size": 2, "first_stage_layers": 4}, None),
    ],
)
def test_layers_are_dealt_out_as_megatron_deals_them(
    layers: int, sizes: dict[str, int], expected: tuple[int, ...] | None
) -> None:
    assert layers_per_stage(layers, Parallelism(**sizes)) == expected


def test_chunks_take_turns() -> None:
    assert chunks_of_stages((4, 4), 2) == ((range(2), range(4, 6)), (range(2, 4), range(6, 8)))


def test_the_fewest_gpus_serve_dense_layers_and_experts() -> None:
    assert fewest_gpus(Parallelism(tp_size=2, pp_size=4)) == 8
    assert fewest_gpus(Parallelism(tp_size=2, pp_size=2, ep_size=8, etp_size=1)) == 16
    assert fewest_gpus(Parallelism(tp_size=3, ep_size=2, etp_size=1)) == 6


@pytest.mark.parametrize(
    ("layers", "pp_size", "expected"),
    [
        (126, 4, (32, 32, 32, 30)),
        (126, 8, (16, 16, 16, 16, 16, 16, 16, 14)),
        (61, 2, (31, 30)),
        (61, 8, (8, 8, 8, 8, 8, 8, 8, 5)),
        (61, 4, (16, 16, 16, 13)),
        (6, 4, (1, 2, 2, 1)),
        (9, 4, (2, 3, 3, 1)),
    ],
)
def test_layers_that_do_not_divide_leave_less_to_the_ends(layers: int, pp_size: int, expected: tuple[int, ...]) -> None:
    first, last = next(uneven_stages(layers, pp_size))

    sizes = Parallelism(pp_size=pp_size, first_stage_layers=first, last_stage_layers=last)
    assert layers_per_stage(layers, sizes) == expected


def test_some_numbers_of_stages_can_not_be_made() -> None:
    assert not list(uneven_stages(61, 32))
    assert not list(uneven_stages(2, 4))
