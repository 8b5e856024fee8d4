"""`run_config.yaml`: a run as Megatron-Bridge's `ConfigContainer` describes it, which Bridge and NeMo-RL read.

Source: `ConfigContainer.from_yaml`, `checkpointing` and `model_load_save` of Megatron-Bridge 0.6.2, whose own reader
takes models as its providers alone: of upstream's `GPTModelConfig` in YAML it cannot read dtypes.
"""

from collections.abc import Mapping
from typing import cast

from ..mapping.family import megatron_values
from ..mapping.model_config import MegatronValues
from .ddp_values import FIELDS, ddp_values
from .peft_values import peft_values
from .run_values import run_values
from .trainer_run import TrainerRun
from .yaml_text import yaml_text

_CONFIG = "megatron.bridge.training.config"
_GPT, _LATENT, _HYBRID = (
    "megatron.bridge.models.gpt_provider.GPTModelProvider",
    "megatron.bridge.models.mla_provider.MLAModelProvider",
    "megatron.bridge.models.hybrid.hybrid_provider.HybridModelProvider",
)
_OURS = {
    "_target_": "mcore_ferry.integration.variants.VariantGPTModelConfig",
    "_builder_": "mcore_ferry.integration.variants.VariantGPTModelBuilder",
}
_TRANSFORMERS = (
    "megatron.core.transformer.transformer_config.TransformerConfig",
    "megatron.core.transformer.transformer_config.MLATransformerConfig",
)
_SPECS = {
    "experimental_attention_variant": "megatron.core.models.gpt.experimental_attention_variant_module_specs"
    ".get_transformer_block_with_experimental_attention_variant_spec",
    "num_moe_experts": "megatron.core.models.gpt.gpt_layer_specs.get_gpt_decoder_block_spec",
}
"""Values with which layers differ from each other, and who makes such layers, as upstream's own builder asks."""

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


def run_config(run: TrainerRun) -> bytes:
    """What it does not say is the classes' default: Bridge refuses names that its version does not know."""
    ddp = ddp_values(run.ddp)
    document = {
        "_target_": f"{_CONFIG}.ConfigContainer",
        "model": model_section(run),
        "checkpoint": {
            "_target_": f"{_CONFIG}.CheckpointConfig",
            "pretrained_checkpoint": str(run.weights),
            "ckpt_format": "torch_dist",
            "save_optim": False,
            "save_rng": False,
            "fully_parallel_save": True,
        },
        "ddp": {
            "_target_": f"{_CONFIG}.DistributedDataParallelConfig",
            **{name: value for name, value in ddp.items() if value != FIELDS[name]},
        },
        "optimizer": {
            "_target_": f"{_CONFIG}.OptimizerConfig",
            "use_distributed_optimizer": ddp["use_distributed_optimizer"],
        },
        "scheduler": {"_target_": f"{_CONFIG}.SchedulerConfig"},
        "dataset": None,
        "logger": {"_target_": f"{_CONFIG}.LoggerConfig"},
        "tokenizer": {
            "_target_": "megatron.bridge.training.tokenizers.config.TokenizerConfig",
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(run.hf),
        },
        "train": {"_target_": f"{_CONFIG}.TrainingConfig", "micro_batch_size": run.micro_batch_size},
        "rng": {"_target_": f"{_CONFIG}.RNGConfig", "seed": run.seed},
        **_peft(run),
    }
    return yaml_text(document)


def model_section(run: TrainerRun) -> dict[str, object]:
    """The model as a provider of Bridge's, or, where it has layers that Bridge has not, as our own config class."""
    said = megatron_values(run.model.family, run_values(run), str(run.hf))
    if said.kind == "variant":
        return _variant(said)
    values = {**said.model, **said.transformer, **_undeclared(said)}
    latent = values.get("multi_latent_attention") is True
    provider = _HYBRID if said.kind == "hybrid" else _LATENT if latent else _GPT
    return {
        "_target_": provider,
        "hf_model_id": str(run.hf_weights or run.hf),
        **{name: _value(name, value) for name, value in values.items()},
        **({} if provider == _HYBRID else _layers(values)),
    }


def _variant(said: MegatronValues) -> dict[str, object]:
    inner = said.transformer
    class_name = _TRANSFORMERS[inner.get("multi_latent_attention") is True]
    return {
        **_OURS,
        **{name: _value(name, value) for name, value in said.model.items()},
        **{name: inner.get(name, 1) for name in _FLAT},
        "transformer": {"_target_": class_name, **{name: _value(name, value) for name, value in inner.items()}},
    }


def _undeclared(said: MegatronValues) -> Mapping[str, object]:
    """Yarn's values, which Bridge's providers declare though upstream's classes do not."""
    return cast("Mapping[str, object]", said.extra["undeclared"])


def _layers(values: Mapping[str, object]) -> dict[str, object]:
    for name, spec in _SPECS.items():
        if values.get(name) is not None:
            more = {"use_transformer_engine": True} if name == "num_moe_experts" else {}
            return {"transformer_layer_spec": {"_target_": spec, "_partial_": True, **more}}
    return {}


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
    return {"peft": {"_target_": _PEFT_CLASSES[run.peft.type], **peft_values(run)}}
