"""Megatron-Bridge: `run_config.yaml`, which every setup has, and overrides for its scripts' `--config-file`.

A freshly initialised adapter is loaded as a checkpoint to go on from: `checkpoint.load` at the first start alone, since
later ones go on from what was saved.
"""

from collections.abc import Mapping

from ..ddp_values import ddp_values
from ..peft_values import peft_values
from ..profile import Profile, ReadKey
from ..run_values import parallel_values, recompute_values, stage_values
from ..trainer_run import TrainerRun
from ..yaml_text import yaml_text
from .refusal import refuse_exclusions

_TRAINER = "Megatron-Bridge 0.6.2"
OVERRIDES = "bridge_overrides.yaml"
_CONFIG_PY = "src/megatron/bridge/training/config.py"
_PARALLEL_PY = "megatron/core/model_parallel_config.py"
_TRANSFORMER_PY = "megatron/core/transformer/transformer_config.py"
_DDP_PY = "megatron/core/distributed/distributed_data_parallel_config.py"
_LORA_PY = "src/megatron/bridge/peft/lora.py"


def document(run: TrainerRun) -> dict[str, object]:
    """Sections of `ConfigContainer`."""
    refuse_exclusions(run, _TRAINER)
    model: dict[str, object] = {
        **parallel_values(run),
        **stage_values(run),
        **recompute_values(run),
        "seq_length": run.sequence_length,
    }
    ddp = ddp_values(run.ddp)
    found: dict[str, object] = {
        "model": model,
        "checkpoint": {
            # The iteration's own folder: whatever the tracker file beside it says.
            "pretrained_checkpoint": str(run.weights),
            "load": run.checkpoints,
            "save": run.checkpoints,
            "ckpt_format": "torch_dist",
        },
        "dataset": {"sequence_length": run.sequence_length},
        "tokenizer": {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(run.hf)},
        "train": {"micro_batch_size": run.micro_batch_size},
        "rng": {"seed": run.seed},
        "ddp": {name: ddp[name] for name in _ddp_names(run)},
    }
    return found if run.peft is None else found | {"peft": peft_values(run)}


def _ddp_names(run: TrainerRun) -> tuple[str, ...]:
    always = (
        "use_distributed_optimizer",
        "use_megatron_fsdp",
        "data_parallel_sharding_strategy",
        "overlap_grad_reduce",
    )
    return tuple(dict.fromkeys((*always, *run.ddp.overrides)))


def _files(run: TrainerRun) -> Mapping[str, bytes]:
    kind = "" if run.peft is None else f"\nThe recipe's PEFT scheme must be {run.peft.type}: `--peft {run.peft.type}`."
    return {OVERRIDES: yaml_text(document(run), f"For --config-file of Megatron-Bridge's training scripts.{kind}")}


def _start(run: TrainerRun) -> tuple[str, str, str]:
    adapter = "" if run.adapter is None else f" With this adapter: checkpoint.load={run.adapter} at the first start."
    return (
        f"`run_config.yaml` describes the run, `{OVERRIDES}` what differs from a recipe; the base is `{run.base}`.",
        f"Start: `CUDA_DEVICE_MAX_CONNECTIONS=1 torchrun --nproc-per-node {run.gpus_per_node} YOUR_FINETUNE_SCRIPT.py "
        f"--config-file {run.target / OVERRIDES}`.",
        f"Set first: the recipe, its dataset, train.global_batch_size and train.train_iters.{adapter}",
    )


MEGATRON_BRIDGE = Profile(
    name="megatron-bridge",
    trainer=_TRAINER,
    keys=(
        *(
            ReadKey(name=f"model.{name}", read_by=_PARALLEL_PY)
            for name in (
                "tensor_model_parallel_size",
                "pipeline_model_parallel_size",
                "virtual_pipeline_model_parallel_size",
                "context_parallel_size",
                "expert_model_parallel_size",
                "expert_tensor_parallel_size",
                "sequence_parallel",
            )
        ),
        *(
            ReadKey(name=f"model.{name}", read_by=_TRANSFORMER_PY)
            for name in (
                "num_layers_in_first_pipeline_stage",
                "num_layers_in_last_pipeline_stage",
                "pipeline_model_parallel_layout",
                "recompute_granularity",
                "recompute_method",
                "recompute_num_layers",
            )
        ),
        ReadKey(name="model.seq_length", read_by="src/megatron/bridge/models/gpt_provider.py"),
        *(
            ReadKey(name=name, read_by=_CONFIG_PY)
            for name in (
                "checkpoint.pretrained_checkpoint",
                "checkpoint.load",
                "checkpoint.save",
                "checkpoint.ckpt_format",
                "dataset.sequence_length",
                "train.micro_batch_size",
                "rng.seed",
            )
        ),
        ReadKey(name="tokenizer.tokenizer_type", read_by="src/megatron/bridge/training/tokenizers/config.py"),
        ReadKey(name="tokenizer.tokenizer_model", read_by="src/megatron/bridge/training/tokenizers/config.py"),
        ReadKey(name="ddp.*", read_by=_DDP_PY),
        *(
            ReadKey(name=f"peft.{name}", read_by=_LORA_PY)
            for name in ("dim", "alpha", "dropout", "dropout_position", "target_modules", "share_expert_adapters")
        ),
    ),
    files=_files,
    start=_start,
)
