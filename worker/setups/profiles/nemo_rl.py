"""NeMo-RL, its Megatron policy: overrides of `grpo_math_1B_megatron.yaml`, and the base where it looks for its import.

NeMo-RL imports an HF model once into `$NRL_MEGATRON_CHECKPOINT_DIR/model_<path with _ for />/iter_0000000`, and starts
from that folder where it is there, with a tracker file beside it; the model is what `run_config.yaml` there says, a
provider of Megatron-Bridge's (`nemo_rl/models/megatron/setup.py`). It always draws its own adapters.
"""

import shlex
from collections.abc import Mapping

from ...checkpoints.iterations import RELEASE, TRACKER
from ...mapping.run_config import RUN_CONFIG
from ...mapping.upstream_classes import VARIANT_FIELDS
from ..ddp_values import ddp_values
from ..peft_values import peft_values
from ..profile import Profile, ReadKey
from ..run_values import parallel_values, stage_values
from ..trainer_run import TrainerRun
from ..yaml_text import yaml_text
from .refusal import no_setting, refuse_exclusions, refuse_variant

_TRAINER = "NeMo-RL 0.5.0"
OVERRIDES, START = "nemo_rl.yaml", "start.sh"
_EXAMPLE = "examples/configs/grpo_math_1B_megatron.yaml"
_LORA_EXAMPLE = "examples/configs/grpo_math_1B_lora_megatron.yaml"
_DDP = (
    "grad_reduce_in_fp32",
    "overlap_grad_reduce",
    "overlap_param_gather",
    "average_in_collective",
    "data_parallel_sharding_strategy",
)
_SETUP = "nemo_rl/models/megatron/setup.py"
_OF_MODEL = ("apply_rope_fusion", "bias_activation_fusion")
"""Fusions that the example sets for its own model, and that not every model can have."""
_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_POLICY = "policy.megatron_cfg"


def document(run: TrainerRun) -> dict[str, object]:
    """What differs from NeMo-RL's example. BadInputError where it has no such setting."""
    sizes, values = run.parallelism, run.model.mcore
    refuse_variant(run, _TRAINER, VARIANT_FIELDS)
    if sizes.pipeline_layout is not None:
        next_step = "Leave it out, or choose first_stage_layers and last_stage_layers."
        raise no_setting(_TRAINER, "spec field parallelism.pipeline_layout", sizes.pipeline_layout, next_step)
    if sizes.vpp_size is not None:
        raise no_setting(_TRAINER, "spec field parallelism.vpp_size", sizes.vpp_size, "Leave it out.")
    if run.ddp.use_megatron_fsdp:
        raise no_setting(_TRAINER, "spec field ddp.use_megatron_fsdp", "true", "Leave it out.")
    for name in run.ddp.overrides:
        if name not in _DDP:
            raise no_setting(_TRAINER, f"spec field ddp.overrides.{name}", run.ddp.overrides[name], "Leave it out.")
    if run.ddp.overrides.get("average_in_collective"):
        raise no_setting(_TRAINER, "spec field ddp.overrides.average_in_collective", "true", "Leave it out.")
    if run.recompute == "selective":
        raise no_setting(_TRAINER, "spec field recompute", "selective", "Choose `none` or `full`.")
    ddp = ddp_values(run.ddp)
    megatron: dict[str, object] = {
        "enabled": True,
        **{name: value for name, value in parallel_values(run).items() if not name.startswith("virtual")},
        **{name: value for name, value in stage_values(run).items() if name.startswith("num_layers")},
        **{name: bool(values.get(name)) for name in _OF_MODEL},
        "activation_checkpointing": run.recompute == "full",
        "optimizer": {
            "use_distributed_optimizer": run.ddp.use_distributed_optimizer,
            "bf16": run.dtype == "bf16",
            "fp16": run.dtype == "fp16",
        },
        "distributed_data_parallel_config": {name: ddp[name] for name in _DDP},
        **_lora(run),
    }
    return {
        "policy": {
            "model_name": str(run.hf_weights or run.hf),
            "tokenizer": {"name": str(run.hf)},
            "precision": _PRECISIONS[run.dtype],
            "max_total_sequence_length": run.sequence_length,
            "train_micro_batch_size": run.micro_batch_size,
            # Context parallelism insists on it.
            **({"sequence_packing": {"enabled": True}} if sizes.cp_size > 1 else {}),
            "megatron_cfg": megatron,
        },
        "checkpointing": {"enabled": True, "checkpoint_dir": run.checkpoints},
        "cluster": {"gpus_per_node": run.gpus_per_node, "num_nodes": run.nodes},
    }


def _lora(run: TrainerRun) -> dict[str, object]:
    if run.peft is None:
        return {}
    if run.peft.type != "lora":
        raise no_setting(_TRAINER, "spec field peft.type", run.peft.type, "Choose `lora`.")
    refuse_exclusions(run, _TRAINER)
    said = peft_values(run)
    values: dict[str, object] = {
        "enabled": True,
        **{name: value for name, value in said.items() if name != "share_expert_adapters"},
        "exclude_modules": (),
        # Read without defaults.
        "lora_A_init_method": "xavier",
        "lora_B_init_method": "zero",
        "a2a_experimental": False,
        "lora_dtype": None,
    }
    return {"peft": values}


def _files(run: TrainerRun) -> Mapping[str, bytes]:
    heading = f"defaults: NeMo-RL's {_EXAMPLE}; give this file by --config."
    text = yaml_text({"defaults": "grpo_math_1B_megatron.yaml", **document(run)}, heading)
    return {OVERRIDES: text, START: _start_script(run)}


def _start_script(run: TrainerRun) -> bytes:
    name = str(run.hf_weights or run.hf)
    imported = f"model_{name.replace('/', '_')}"
    run_config = (run.weights if run.base == run.target else run.target) / RUN_CONFIG
    return f"""#!/usr/bin/env bash
# From NeMo-RL's folder: bash {shlex.quote(str(run.target / START))}
set -euo pipefail
# Where NeMo-RL looks for what it would import itself: links to the base, beside this run's config.
export NRL_MEGATRON_CHECKPOINT_DIR={shlex.quote(f"{run.target}-nemo-rl")}
IMPORTED="$NRL_MEGATRON_CHECKPOINT_DIR"/{shlex.quote(imported)}
mkdir -p "$IMPORTED/iter_0000000"
cp -rs --remove-destination {shlex.quote(f"{run.weights}/.")} "$IMPORTED/iter_0000000"
ln -sf {shlex.quote(str(run_config))} "$IMPORTED/iter_0000000/{RUN_CONFIG}"
ln -sfn iter_0000000 "$IMPORTED/{RELEASE}"
# Without this file NeMo-RL starts from random weights, silently; and it takes no iteration 0.
echo {RELEASE} > "$IMPORTED/{TRACKER}"
cp {shlex.quote(str(run.target / OVERRIDES))} examples/configs/ferry_{OVERRIDES}
exec uv run examples/run_grpo.py --config examples/configs/ferry_{OVERRIDES} "$@"
""".encode()


def _start(run: TrainerRun) -> tuple[str, str, str]:
    adapter = "" if run.adapter is None else f" It draws adapters of its own: `{run.adapter}` is not loaded."
    return (
        f"`{OVERRIDES}` builds on NeMo-RL's {_EXAMPLE}; the base is `{run.base}`.",
        f"Start in NeMo-RL's folder: `bash {shlex.quote(str(run.target / START))}`.{adapter}",
        "Set first, as further overrides: data, env, grpo.num_prompts_per_step, policy.train_global_batch_size"
        + ("; vLLM needs the HF weights, which are not here." if run.hf_weights is None else "."),
    )


NEMO_RL = Profile(
    name="nemo-rl",
    trainer=_TRAINER,
    keys=(
        ReadKey(name="defaults", read_by="nemo_rl/utils/config.py"),
        *(
            ReadKey(name=name, read_by=_EXAMPLE)
            for name in (
                "policy.model_name",
                "policy.tokenizer.name",
                "policy.precision",
                "policy.max_total_sequence_length",
                "policy.train_micro_batch_size",
                f"{_POLICY}.enabled",
                f"{_POLICY}.tensor_model_parallel_size",
                f"{_POLICY}.pipeline_model_parallel_size",
                f"{_POLICY}.context_parallel_size",
                f"{_POLICY}.expert_model_parallel_size",
                f"{_POLICY}.expert_tensor_parallel_size",
                f"{_POLICY}.sequence_parallel",
                f"{_POLICY}.num_layers_in_first_pipeline_stage",
                f"{_POLICY}.num_layers_in_last_pipeline_stage",
                f"{_POLICY}.activation_checkpointing",
                f"{_POLICY}.optimizer.use_distributed_optimizer",
                f"{_POLICY}.optimizer.bf16",
                f"{_POLICY}.optimizer.fp16",
                "policy.sequence_packing.enabled",
                *(f"{_POLICY}.distributed_data_parallel_config.{name}" for name in _DDP),
                "checkpointing.enabled",
                "checkpointing.checkpoint_dir",
                "cluster.gpus_per_node",
                "cluster.num_nodes",
            )
        ),
        *(ReadKey(name=f"{_POLICY}.{name}", read_by=_SETUP) for name in _OF_MODEL),
        *(
            ReadKey(name=f"{_POLICY}.peft.{name}", read_by=_LORA_EXAMPLE)
            for name in (
                "enabled",
                "dim",
                "alpha",
                "dropout",
                "dropout_position",
                "target_modules",
                "exclude_modules",
                "lora_A_init_method",
                "lora_B_init_method",
                "a2a_experimental",
                "lora_dtype",
            )
        ),
    ),
    files=_files,
    start=_start,
)
