"""verl, its Megatron engine: overrides of `ppo_megatron_trainer.yaml`, one hydra argument a line.

The base is loaded by `dist_checkpointing`, or from HF weights where there are adapters; the rollout engine starts with
dummy weights and gets the trainer's.
"""

import shlex
from collections.abc import Iterator, Mapping
from typing import cast

from ...checkpoints.iterations import iteration_name
from ..ddp_values import ddp_values
from ..profile import Profile, ReadKey
from ..run_values import parallel_values, recompute_values, stage_values
from ..trainer_run import TrainerRun
from .refusal import no_setting

_TRAINER = "verl (commit 0b8f32c)"
OVERRIDES = "verl_overrides.txt"
_ENGINE = "verl/trainer/config/engine/megatron.yaml"
_MODEL = "verl/trainer/config/model/hf_model.yaml"
_ROLLOUT = "verl/trainer/config/rollout/rollout.yaml"
_PPO = "verl/trainer/config/ppo_megatron_trainer.yaml"
_DATA = "verl/trainer/config/data/legacy_data.yaml"

_ACTOR, _REF = "actor_rollout_ref.actor.megatron", "actor_rollout_ref.ref.megatron"
_LORA = "actor_rollout_ref.model.lora"
_PARALLEL = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "sequence_parallel",
    "use_dist_checkpointing",
    "dist_checkpointing_path",
    "use_mbridge",
)
_OF_ACTOR = (
    "use_distributed_optimizer",
    "seed",
    "dtype",
    "+override_transformer_config.num_layers_in_first_pipeline_stage",
    "+override_transformer_config.num_layers_in_last_pipeline_stage",
    "override_transformer_config.recompute_granularity",
    "override_transformer_config.recompute_method",
    "override_transformer_config.recompute_num_layers",
    "vanilla_mbridge",
)
_OF_LORA = ("type", "rank", "alpha", "dropout", "dropout_position", "target_modules", "exclude_modules")


def _files(run: TrainerRun) -> Mapping[str, bytes]:
    lines = [f"{name}={_text(value)}" for name, value in overrides(run)]
    return {OVERRIDES: ("\n".join(lines) + "\n").encode()}


def overrides(run: TrainerRun) -> Iterator[tuple[str, object]]:
    """Keys as hydra takes them (`+`: not in the defaults), and their values."""
    _refuse(run)
    yield "actor_rollout_ref.model.path", str(run.hf_weights or run.hf)
    yield "actor_rollout_ref.model.tokenizer_path", str(run.hf)
    for prefix in (_ACTOR, _REF):
        for name, value in _engine(run).items():
            if value is not None:
                yield f"{prefix}.{name}", value
    for name, value in _actor(run).items():
        if value is not None:
            yield _under(_ACTOR, name), value
    ddp = ddp_values(run.ddp)
    for name in run.ddp.overrides:
        yield f"+{_ACTOR}.override_ddp_config.{name}", ddp[name]
    yield from _lora(run)
    yield "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", run.micro_batch_size
    yield "actor_rollout_ref.rollout.load_format", "dummy"
    yield "data.max_response_length", run.sequence_length // 2
    yield "data.max_prompt_length", run.sequence_length - run.sequence_length // 2
    yield "trainer.n_gpus_per_node", run.gpus_per_node
    yield "trainer.nnodes", run.nodes


def _refuse(run: TrainerRun) -> None:
    if run.ddp.use_megatron_fsdp:
        raise no_setting(_TRAINER, "spec field ddp.use_megatron_fsdp", "true", "Leave it out.")
    if run.dtype == "fp32":
        raise no_setting(_TRAINER, "spec field dtype", run.dtype, "Choose `bf16` or `fp16`.")
    if run.peft is not None and run.hf_weights is None:
        next_step = "Set up from the HF folder: with adapters verl loads the base from HF weights alone."
        raise no_setting(_TRAINER, "spec field peft without HF weights", run.peft.type, next_step)


def _engine(run: TrainerRun) -> Mapping[str, object]:
    return {
        **parallel_values(run),
        # verl puts adapters on before it loads, and its reader of checkpoints would look for them in the base.
        "use_dist_checkpointing": run.peft is None,
        "dist_checkpointing_path": str(run.base / iteration_name(run.iteration)) if run.peft is None else None,
        # The config is the bridge's, weights come from the base; newer versions have no other builder.
        "use_mbridge": True,
    }


def _actor(run: TrainerRun) -> Mapping[str, object]:
    return {
        "use_distributed_optimizer": run.ddp.use_distributed_optimizer,
        "seed": run.seed,
        "dtype": str(run.model.mcore.get("params_dtype")),
        **{f"+override_transformer_config.{name}": value for name, value in stage_values(run).items()},
        **{f"override_transformer_config.{name}": value for name, value in recompute_values(run).items()},
        "vanilla_mbridge": False if run.peft is not None else None,
    }


def _lora(run: TrainerRun) -> Iterator[tuple[str, object]]:
    if run.peft is None:
        return
    yield f"{_LORA}.type", run.peft.type
    yield f"{_LORA}.rank", run.peft.dim
    yield f"{_LORA}.alpha", run.peft.alpha
    yield f"{_LORA}.dropout", run.peft.dropout
    yield f"{_LORA}.dropout_position", run.peft.dropout_position
    if run.peft.target_modules:
        yield f"{_LORA}.target_modules", run.peft.target_modules
    if run.peft.exclude_modules:
        yield f"{_LORA}.exclude_modules", run.peft.exclude_modules


def _under(prefix: str, name: str) -> str:
    return f"+{prefix}.{name[1:]}" if name.startswith("+") else f"{prefix}.{name}"


def _text(value: object) -> str:
    match value:
        case bool():
            return str(value)
        case tuple():
            return f"[{','.join(cast('tuple[str, ...]', value))}]"
        case _:
            return str(value)


def _start(run: TrainerRun) -> tuple[str, str, str]:
    arguments = shlex.quote(str(run.target / OVERRIDES))
    return (
        f"`{OVERRIDES}` holds hydra overrides for verl's Megatron trainer; the base is `{run.base}`.",
        "Start: `mapfile -t OVERRIDES < "
        f"{arguments} && python3 -m verl.trainer.main_ppo --config-name=ppo_megatron_trainer "
        '"${OVERRIDES[@]}"`.',
        "Set first, as further overrides: data.train_files, data.val_files, data.train_batch_size, the reward.",
    )


VERL = Profile(
    name="verl",
    trainer=_TRAINER,
    keys=(
        ReadKey(name="actor_rollout_ref.model.path", read_by=_MODEL),
        ReadKey(name="actor_rollout_ref.model.tokenizer_path", read_by=_MODEL),
        *(ReadKey(name=f"{prefix}.{name}", read_by=_ENGINE) for prefix in (_ACTOR, _REF) for name in _PARALLEL),
        *(ReadKey(name=_under(_ACTOR, name), read_by=_ENGINE) for name in _OF_ACTOR),
        ReadKey(name=f"+{_ACTOR}.override_ddp_config.*", read_by=_ENGINE),
        *(ReadKey(name=f"{_LORA}.{name}", read_by=_MODEL) for name in _OF_LORA),
        ReadKey(
            name="actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", read_by="verl/trainer/config/actor/actor.yaml"
        ),
        ReadKey(name="actor_rollout_ref.rollout.load_format", read_by=_ROLLOUT),
        ReadKey(name="data.max_response_length", read_by=_DATA),
        ReadKey(name="data.max_prompt_length", read_by=_DATA),
        ReadKey(name="trainer.n_gpus_per_node", read_by=_PPO),
        ReadKey(name="trainer.nnodes", read_by=_PPO),
    ),
    files=_files,
    start=_start,
)
