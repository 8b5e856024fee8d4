"""`verify: logits` of a job that leased a GPU: it runs there, in fp32, one model after the other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.case import BY_NAME, write
from tests.jobs_here import do
from tests.llama_folder import write_llama
from worker.handlers.context import Prepared
from worker.jobs.errors import BadInputError
from worker.jobs.spec import ImportSpec, VerifySpec
from worker.jobs.state import LogitsFigures
from worker.verification.logits import compare

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU")


def imported(source: Path, target: Path, socket: Path, *, gpu: bool) -> LogitsFigures:
    done = do(ImportSpec(source=str(source), target=str(target), verify=("logits",)), socket, gpu=gpu)
    assert isinstance(done, Prepared)
    assert done.result.verified is not None
    assert done.result.verified.logits is not None
    return done.result.verified.logits


@pytest.mark.skipif(torch.cuda.is_available(), reason="no GPU")
def test_a_leased_gpu_is_asked_for_and_nothing_else_will_do(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=1, hidden=64)

    with pytest.raises(BadInputError, match="a model that could not be run here"):
        imported(tmp_path / "hf", tmp_path / "mcore", warm_model_configs, gpu=True)

    assert not (tmp_path / "mcore").exists()


@on_gpu
@pytest.mark.parametrize("name", ["gqa", "mixtral", "qwen3-moe", "gpt-oss"])
def test_both_models_agree_on_the_gpu(name: str, tmp_path: Path, warm_model_configs: Path) -> None:
    """TF32 would be off by about 1e-3 of the values."""
    write(BY_NAME[name], tmp_path / "hf")

    figures = imported(tmp_path / "hf", tmp_path / "mcore", warm_model_configs, gpu=True)

    assert figures.max_abs_difference < 5e-5 * figures.range
    assert figures.top1_agreement == 1


@on_gpu
def test_one_model_is_gone_before_the_other_comes(tmp_path: Path) -> None:
    write_llama(tmp_path / "hf", layers=4, hidden=1024)
    weights = (tmp_path / "hf" / "model.safetensors").stat().st_size
    side = {"hf": str(tmp_path / "hf")}
    torch.cuda.reset_peak_memory_stats()
    held: list[int] = []

    figures = _compared([side, side], lambda: held.append(torch.cuda.memory_allocated()))

    assert figures["max_abs_difference"] == 0
    assert weights < torch.cuda.max_memory_allocated() < 1.5 * weights
    assert len(held) == 4
    assert torch.cuda.memory_allocated() < 0.25 * weights  # cuBLAS keeps a workspace of 32 MiB


@on_gpu
def test_the_gpu_says_what_the_cpu_says(tmp_path: Path, warm_model_configs: Path) -> None:
    write_llama(tmp_path / "hf", layers=2, hidden=256)
    figures = imported(tmp_path / "hf", tmp_path / "mcore", warm_model_configs, gpu=True)
    again = do(
        VerifySpec(source=str(tmp_path / "hf"), against=str(tmp_path / "mcore"), logits=True), warm_model_configs
    )

    result: Any = getattr(again, "result")  # noqa: B009  # an Answer's
    assert result.logits.range == pytest.approx(figures.range, rel=1e-4)


def _compared(sides: list[dict[str, Any]], stepped: Callable[[], None]) -> dict[str, Any]:
    asked = {"sides": sides, "vocabulary": 1000, "longest": 64, "device": "cuda"}
    return compare(json.dumps(asked), stepped)
