"""`run_config.yaml`: a run as Megatron-Bridge's `ConfigContainer` describes it.

Source: Megatron-Bridge's `ConfigContainer.to_yaml` and what its `checkpointing` and `model_load_save` read of it.
"""

from collections.abc import Mapping
from typing import cast

from .trainer_run import TrainerRun
from .yaml_text import yaml_text

_DTYPES = frozenset({"params_dtype", "autocast_dtype", "pipeline_dtype"})
_ACTIVATIONS = {
    "silu": "torch.nn.functional.silu",
    "gelu": "torch.nn.functional.gelu",
    "relu": "torch.nn.functional.relu",
    "sigmoid": "torch.sigmoid",
    "tanh": "torch.tanh",
    "gelu_pytorch_tanh": "megatron.core.activations.fast_gelu",
    "relu2": "megatron.core.activations.squared_relu",
    "quick_gelu": "megatron.core.fusions.fused_bias_geglu.quick_gelu",
}
_BACKENDS = ("flash", "fused", "unfused", "local", "auto")
"""Megatron's `AttnBackend`, from 1."""
_FLAT = ("tensor_model_parallel_size", "pipeline_model_parallel_size")
"""Bridge's checkpoint loader looks for these in the section itself, whichever class it describes."""
_PEFT_CLASSES = {
    "lora": "megatron.bridge.peft.lora.LoRA",
    "canonical_lora": "megatron.bridge.peft.canonical_lora.CanonicalLoRA",
    "dora": "megatron.bridge.peft.dora.DoRA",
}


def run_config(config: Mapping[str, object], ddp: Mapping[str, object], run: TrainerRun) -> bytes:
    """`config` is the content of model_config.json, with the run's parallelism."""
    document = {
        "model": _model(config),
        "checkpoint": {
            "_target_": "megatron.bridge.training.config.CheckpointConfig",
            "pretrained_checkpoint": str(run.base),
            "ckpt_format": "torch_dist",
            "save_optim": False,
            "save_rng": False,
            "fully_parallel_save": True,
        },
        "ddp": {"_target_": "megatron.bridge.training.config.DistributedDataParallelConfig", **ddp},
        "optimizer": {
            "_target_": "megatron.bridge.training.config.OptimizerConfig",
            "use_distributed_optimizer": ddp["use_distributed_optimizer"],
        },
        "tokenizer": {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(run.hf),
        },
        "train": {
            "_target_": "megatron.bridge.training.config.TrainingConfig",
            "micro_batch_size": run.micro_batch_size,
        },
        "rng": {"_target_": "megatron.bridge.training.config.RNGConfig", "seed": run.seed},
        **_peft(run),
    }
    return yaml_text(document)


def _model(config: Mapping[str, object]) -> dict[str, object]:
    transformer = cast("Mapping[str, object]", config["transformer"])
    inner = {name: _value(name, value) for name, value in transformer.items()}
    outer = {name: _value(name, value) for name, value in config.items() if name != "transformer"}
    return {**outer, **{name: transformer[name] for name in _FLAT}, "transformer": inner}


def _value(name: str, value: object) -> object:
    """As upstream's YAML has dtypes, functions and enums: by what makes them."""
    if name in _DTYPES and value is not None:
        return {"_target_": f"torch.{value}", "_call_": False}
    if name == "activation_func":
        return {"_target_": _ACTIVATIONS[str(value)], "_call_": False}
    if name == "attention_backend" and value in _BACKENDS:
        number = _BACKENDS.index(str(value)) + 1
        return {"_target_": "megatron.core.transformer.enums.AttnBackend", "_call_": True, "_args_": [number]}
    return value


def _peft(run: TrainerRun) -> dict[str, object]:
    if run.peft is None:
        return {}
    values = run.peft.model_dump(exclude={"type", "init_adapter", "seed"})
    named = {name: value for name, value in values.items() if value != ()}
    return {"peft": {"_target_": _PEFT_CLASSES[run.peft.type], **named}}
