"""Runs as setups plan them, made of an HF config alone."""

from pathlib import Path
from typing import Any

from worker.checkpoints.iterations import tracker_text
from worker.handlers.config import model_of
from worker.jobs.setup_spec import DdpSettings, Parallelism
from worker.jobs.spec_fields import DType
from worker.mapping.record import Record
from worker.setups.stages import fewest_gpus
from worker.setups.trainer_run import TrainerRun

_NAMES: dict[str, DType] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def run_of(config: dict[str, Any], target: Path = Path("/run"), **fields: Any) -> TrainerRun:
    """At no parallelism, with nothing computed again, unless told otherwise."""
    model = model_of(Record({name: value for name, value in config.items() if name != "quantization_config"}, "test"))
    parallelism = fields.pop("parallelism", Parallelism())
    values: dict[str, Any] = {
        "model": model,
        "dtype": _NAMES[model.mcore.text("params_dtype")],
        "parallelism": parallelism,
        "world_size": parallelism.world_size or fewest_gpus(parallelism),
        "target": target,
        "base": target,
        "iteration": None,
        "tracked": tracker_text(fields.get("iteration")),
        "hf": target / "hf",
        "hf_weights": None,
        "peft": None,
        "adapter": None,
        "ddp": DdpSettings(),
        "sequence_length": 64,
        "micro_batch_size": 1,
        "recompute": "none",
        "seed": 1234,
    }
    return TrainerRun(**{**values, **fields})
