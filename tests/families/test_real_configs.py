"""Configs of models that people run: each maps, comes back and plans, or is refused with a named reason."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from worker.jobs.errors import BadInputError
from worker.mapping.bindings import Model, bindings
from worker.mapping.plan import plan_import
from worker.mapping.quantization import FIELDS as QUANTIZED
from worker.mapping.record import Record
from worker.mapping.registry import family_of

OPS = Path(__file__).parents[2] / "ops"

# This list may only grow.
MAPPED = {
    "MiniMaxAI--MiniMax-M2.5": "minimax_m2",
    "MiniMaxAI--MiniMax-M2.7": "minimax_m2",
    "Qwen--Qwen3-0.6B": "qwen3",
    "Qwen--Qwen3-1.7B": "qwen3",
    "Qwen--Qwen3-235B-A22B-FP8": "qwen3_moe",
    "Qwen--Qwen3-235B-A22B": "qwen3_moe",
    "Qwen--Qwen3-30B-A3B-FP8": "qwen3_moe",
    "Qwen--Qwen3-30B-A3B": "qwen3_moe",
    "Qwen--Qwen3-32B-FP8-Static-PerTensor": "qwen3",
    "Qwen--Qwen3-32B-FP8": "qwen3",
    "Qwen--Qwen3-32B": "qwen3",
    "Qwen--Qwen3-8B": "qwen3",
    "Qwen--Qwen3-Coder-480B-A35B-Instruct": "qwen3_moe",
    "deepseek-ai--DeepSeek-R1": "deepseek_v3",
    "deepseek-ai--DeepSeek-V3": "deepseek_v3",
    "meta-llama--Meta-Llama-3.1-405B": "llama",
    "meta-llama--Meta-Llama-3.1-70B": "llama",
    "meta-llama--Meta-Llama-3.1-8B": "llama",
    "mistralai--Mixtral-8x22B-v0.1": "mixtral",
    "mistralai--Mixtral-8x7B-v0.1": "mixtral",
    "moonshotai--Kimi-K2-Instruct": "deepseek_v3",
    "nvidia--DeepSeek-V3.1-NVFP4": "deepseek_v3",
    "nvidia--Llama-3.1-70B-Instruct-FP8": "llama",
    "nvidia--MiniMax-M2.5-NVFP4": "minimax_m2",
    "nvidia--MiniMax-M2.7-NVFP4": "minimax_m2",
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-FP8": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4": "nemotron_h",
    "nvidia--NVIDIA-Nemotron-3.5-Lightning-30B-A3B-NVFP4": "nemotron_h",
    "nvidia--Nemotron-H-56B-Base-8K": "nemotron_h",
    "nvidia--Qwen3-235B-A22B-NVFP4": "qwen3_moe",
    "openai--gpt-oss-120b": "gpt_oss",
    "openai--gpt-oss-20b": "gpt_oss",
}


@dataclass(frozen=True, slots=True)
class Info:
    """What a safetensors header would say."""

    dtype: str
    shape: tuple[int, ...]


@pytest.fixture(scope="session")
def configs() -> dict[str, dict[str, Any]]:
    """The content of each config.json, by model."""
    sys.path.insert(0, str(OPS))
    from real_configs import real_configs

    folder: Path = real_configs()
    suffix = "_config.json"
    found = {path.name.removesuffix(suffix): json.loads(path.read_text()) for path in folder.rglob(f"*{suffix}")}
    return {name: config for name, config in sorted(found.items()) if not name.endswith("_hf_quant")}


def outcome(name: str, config: dict[str, Any]) -> tuple[bool, str]:
    """Whether it maps, and its family or the reason."""
    hf = Record(config, name)
    try:
        family = family_of(hf)
        values = family.to_mcore(hf)
    except BadInputError as error:
        return False, str(error).removeprefix(f"{name}: ")
    assert family.to_mcore(family.to_hf(values)).values == values.values
    unquantized = Record({key: value for key, value in config.items() if key not in QUANTIZED}, name)
    model = Model(family=family, hf=unquantized, mcore=values)
    plan = plan_import(model, tensors(model))
    assert plan.tasks
    return True, f"{family.name}, {len(plan.tasks):,} tasks"


def tensors(model: Model) -> dict[str, Info]:
    """Every HF tensor that the rules ask for; one stack of experts is written once."""
    return dict(_tensors(model))


def _tensors(model: Model) -> Iterator[tuple[str, Info]]:
    for binding in bindings(model):
        for part in binding.parts:
            yield part.source.name, Info("BF16", (*part.stack, *part.shape))


@pytest.mark.slow
def test_every_real_config_maps_or_is_refused_by_name(
    configs: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {name: outcome(name, config) for name, config in configs.items()}

    with capsys.disabled():
        print(f"\n{sum(maps for maps, _ in outcomes.values())} of {len(outcomes)} configs map")
        for name, (maps, what) in outcomes.items():
            print(f"  {'maps   ' if maps else 'refused'}  {name:60} {what[:90]}")
    mapped = {name: what.partition(",")[0] for name, (maps, what) in outcomes.items() if maps}
    assert mapped == MAPPED
