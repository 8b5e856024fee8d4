"""What a run that does not fit is told: a parallelism at which it does, by the same estimate."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.large_stand_ins import DEEPSEEK_V3, KIMI_K2, LLAMA_8B, LLAMA_405B, QWEN3_235B
from tests.trainer_runs import run_of
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import DdpSettings, Parallelism, PeftSettings
from worker.mapping.bindings import bindings
from worker.setups import counts
from worker.setups.memory_estimate import estimate
from worker.setups.parallel_checks import refuse_impossible
from worker.setups.registry import PROFILES
from worker.setups.stages import layers_per_stage
from worker.setups.suggestion import nearest_fitting, refuse_too_large, room_of
from worker.setups.trainer_run import TrainerRun

GIB = 2**30
GPU = 80 * GIB


def next_step(run: TrainerRun, gpu_bytes: int = GPU) -> str:
    with pytest.raises(BadInputError) as raised:
        refuse_too_large(run, gpu_bytes)
    return raised.value.info.next_step


def as_told(config: dict[str, Any], offer: str, **fields: Any) -> TrainerRun:
    """The run that its options describe."""
    named = {
        "tp": "tp_size",
        "pp": "pp_size",
        "cp": "cp_size",
        "ep": "ep_size",
        "etp": "etp_size",
        "first-stage-layers": "first_stage_layers",
        "last-stage-layers": "last_stage_layers",
        "world-size": "world_size",
    }
    options = dict(re.findall(r"--([a-z-]+) (\w+)", offer))
    recompute = options.pop("recompute", "none")
    sizes = Parallelism(**{named[name]: int(value) for name, value in options.items()})
    return run_of(config, parallelism=sizes, recompute=recompute, **fields)


@pytest.mark.parametrize("config", [LLAMA_405B, DEEPSEEK_V3], ids=["405B", "DeepSeek-V3"])
@pytest.mark.parametrize("length", [4096, 131072])
def test_what_is_told_is_possible_and_fits(config: dict[str, Any], length: int) -> None:
    step = next_step(run_of(config, parallelism=Parallelism(tp_size=8), sequence_length=length))

    for offer in step.split("; or "):
        told = as_told(config, offer, sequence_length=length)
        refuse_impossible(told)
        assert estimate(told).most.total <= GPU - room_of(GPU)


@pytest.mark.parametrize("config", [LLAMA_405B, DEEPSEEK_V3, KIMI_K2], ids=["405B", "DeepSeek-V3", "Kimi-K2"])
def test_stages_may_be_uneven(config: dict[str, Any]) -> None:
    fit = nearest_fitting(run_of(config, parallelism=Parallelism(tp_size=8, world_size=256), sequence_length=4096), GPU)

    assert fit is not None
    layers = layers_per_stage(config["num_hidden_layers"], fit.parallelism)
    assert layers is not None
    assert len(set(layers)) > 1


@pytest.mark.parametrize("config", [LLAMA_405B, QWEN3_235B], ids=["405B", "Qwen3-235B"])
def test_trainers_have_settings_for_what_is_told(config: dict[str, Any]) -> None:
    step = next_step(run_of(config, parallelism=Parallelism(tp_size=8), sequence_length=4096))

    for offer in step.split("; or "):
        told = as_told(config, offer, sequence_length=4096, hf_weights=Path("/hf"))
        assert all(profile.files(told) for profile in PROFILES)


def test_a_model_is_counted_once_for_all_parallelisms() -> None:
    run = run_of(DEEPSEEK_V3, parallelism=Parallelism(tp_size=8), peft=PeftSettings(), sequence_length=4096)

    with mock.patch.object(counts, "bindings", wraps=bindings) as counted:
        next_step(run)

    assert counted.call_count == 1


def test_many_times_the_gpus_are_looked_at() -> None:
    fit = nearest_fitting(run_of(KIMI_K2, sequence_length=4096), 40 * GIB)

    assert fit is not None
    assert 128 < fit.world_size <= 4096


def test_recomputation_is_offered_where_it_saves_gpus() -> None:
    helped = run_of(QWEN3_235B, parallelism=Parallelism(tp_size=8), peft=PeftSettings(), sequence_length=4096)
    helpless = run_of(LLAMA_8B, sequence_length=1024)

    assert "; or --tp 8 --recompute full on 8 GPUs fits, with " in next_step(helped)
    assert "recompute" not in next_step(helpless)


def test_where_nothing_fits_it_is_said() -> None:
    run = run_of(LLAMA_8B, parallelism=Parallelism(tp_size=8), sequence_length=4096, micro_batch_size=10**5)

    step = next_step(run, 2 * GIB)

    assert "up to 4,096 times" in step
    assert "lower micro_batch_size" in step


def test_optimizer_instances_divide_what_is_told() -> None:
    ddp = DdpSettings(overrides={"num_distributed_optimizer_instances": 4})
    run = run_of(LLAMA_8B, parallelism=Parallelism(world_size=4), sequence_length=4096, ddp=ddp)

    fit = nearest_fitting(run, GPU)

    assert fit is not None
    assert fit.world_size // fit.parallelism.tp_size // fit.parallelism.pp_size % 4 == 0


def test_a_run_that_fits_is_let_through() -> None:
    run = run_of(LLAMA_8B, parallelism=Parallelism(tp_size=4, world_size=8), sequence_length=2048)

    assert refuse_too_large(run, GPU).most.total < 76 * GIB
