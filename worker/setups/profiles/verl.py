"""verl, its Megatron engine: overrides of `ppo_megatron_trainer.yaml`, one hydra argument a line.

The base is loaded by `dist_checkpointing`, or from HF weights where there are adapters; the rollout engine starts with
dummy weights and gets the trainer's.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import cast

from ...checkpoints.iterations import RELEASE
from ...mapping.layer_sets import one_stack
from ..ddp_values import ddp_values
from ..peft_values import peft_values
from ..profile import Profile, ReadKey
from ..run_values import parallel_values, recompute_values, stage_values
from ..trainer_run import TrainerRun
from .refusal import no_setting, refuse_exclusions

_TRAINER = "verl 0.9.1"
OVERRIDES = "verl_overrides.txt"
_ENGINE = "verl/trainer/config/engine/megatron.yaml"
_MODEL = "verl/trainer/config/model/hf_model.yaml"
_ROLLOUT = "verl/trainer/config/rollout/rollout.yaml"
_PPO = "verl/trainer/config/ppo_trainer.yaml"
_ACTOR_YAML, _REF_YAML = "verl/trainer/config/actor/actor.yaml", "verl/trainer/config/ref/ref.yaml"
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
    "dtype",
)
_OF_ACTOR = (
    "use_distributed_optimizer",
    "seed",
    "+override_transformer_config.num_layers_in_first_pipeline_stage",
    "+override_transformer_config.num_layers_in_last_pipeline_stage",
    "+override_transformer_config.pipeline_model_parallel_layout",
    "override_transformer_config.recompute_granularity",
    "override_transformer_config.recompute_method",
    "override_transformer_config.recompute_num_layers",
    "vanilla_mbridge",
)
_OF_LORA = ("type", "rank", "alpha", "dropout", "dropout_position", "target_modules", "adapter_path")
_PLAIN = re.compile(r"[\w./*+-]+")
"""What hydra's grammar takes as it is."""


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
    # Asked for, and without defaults.
    yield "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", run.micro_batch_size
    yield "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", run.micro_batch_size
    yield "actor_rollout_ref.rollout.name", "vllm"
    yield "actor_rollout_ref.rollout.load_format", "dummy"
    yield "actor_rollout_ref.rollout.dtype", str(run.model.mcore.get("params_dtype"))
    yield "actor_rollout_ref.rollout.tensor_model_parallel_size", run.parallelism.tp_size
    # The default asks for a critic, whose model is not here.
    yield "algorithm.adv_estimator", "grpo"
    yield "data.max_response_length", run.sequence_length // 2
    yield "data.max_prompt_length", run.sequence_length - run.sequence_length // 2
    yield "trainer.n_gpus_per_node", run.gpus_per_node
    yield "trainer.nnodes", run.nodes
    yield "trainer.default_local_dir", run.checkpoints


def _refuse(run: TrainerRun) -> None:
    if run.ddp.use_megatron_fsdp:
        raise no_setting(_TRAINER, "spec field ddp.use_megatron_fsdp", "true", "Leave it out.")
    if run.dtype == "fp32":
        raise no_setting(_TRAINER, "spec field dtype", run.dtype, "Choose `bf16` or `fp16`.")
    if run.peft is not None and run.hf_weights is None:
        next_step = "Set up from the HF folder: with adapters verl loads the base from HF weights alone."
        raise no_setting(_TRAINER, "spec field peft without HF weights", run.peft.type, next_step)
    if run.peft is None and one_stack(run.model.mcore) and not run.model.is_stacked:
        # Its `load_mcore_dist_weights` asks for a model's keys without the checkpoint's content metadata.
        next_step = "Set up from the HF folder, with `layer_keys: stacked`."
        raise no_setting(_TRAINER, "keys of the base's layers", "one a layer", next_step)
    refuse_exclusions(run, _TRAINER)


def _engine(run: TrainerRun) -> Mapping[str, object]:
    return {
        **parallel_values(run),
        # verl puts adapters on before it loads, and its reader of checkpoints would look for them in the base.
        "use_dist_checkpointing": run.peft is None,
        "dist_checkpointing_path": str(run.weights) if run.peft is None else None,
        # The config is the bridge's, weights come from the base; newer versions have no other builder.
        "use_mbridge": True,
        "dtype": str(run.model.mcore.get("params_dtype")),
    }


def _actor(run: TrainerRun) -> Mapping[str, object]:
    return {
        "use_distributed_optimizer": run.ddp.use_distributed_optimizer,
        "seed": run.seed,
        **{f"+override_transformer_config.{name}": value for name, value in stage_values(run).items()},
        **{f"override_transformer_config.{name}": value for name, value in recompute_values(run).items()},
        "vanilla_mbridge": False if run.peft is not None else None,
    }


def _lora(run: TrainerRun) -> Iterator[tuple[str, object]]:
    if run.peft is None:
        return
    yield f"{_LORA}.type", run.peft.type
    for name, value in peft_values(run).items():
        match name:
            case "dim":
                yield f"{_LORA}.rank", value
            case "share_expert_adapters":
                yield f"+{_LORA}.{name}", value
            case _:
                yield f"{_LORA}.{name}", value
    if run.adapter is not None:
        yield f"{_LORA}.adapter_path", str(run.adapter / RELEASE)


def _under(prefix: str, name: str) -> str:
    return f"+{prefix}.{name[1:]}" if name.startswith("+") else f"{prefix}.{name}"


def _text(value: object) -> str:
    """In hydra's grammar, in which quotes keep spaces, commas and equal signs as they are."""
    match value:
        case tuple():
            return f"[{','.join(map(_text, cast('tuple[str, ...]', value)))}]"
        case str() if not _PLAIN.fullmatch(value):
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            return f"'{escaped}'"
        case _:
            return str(value)


def _start(run: TrainerRun) -> tuple[str, str, str]:
    arguments = shlex.quote(str(run.target / OVERRIDES))
    return (
        f"`{OVERRIDES}` holds hydra overrides for verl's Megatron trainer; the base is `{run.base}`.",
        "Start: `mapfile -t OVERRIDES < "
        f"{arguments} && python3 -m verl.trainer.main_ppo --config-name=ppo_megatron_trainer "
        '"${OVERRIDES[@]}"`.',
        "Set first, as further overrides: data.train_files, data.val_files, data.train_batch_size, "
        "actor_rollout_ref.actor.ppo_mini_batch_size, actor_rollout_ref.rollout.n, the reward.",
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
            name=f"+{_LORA}.share_expert_adapters", read_by="megatron/bridge/peft/utils.py of Megatron-Bridge 0.6.2"
        ),
        ReadKey(name="actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", read_by=_ACTOR_YAML),
        ReadKey(name="actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu", read_by=_REF_YAML),
        *(
            ReadKey(name=f"actor_rollout_ref.rollout.{name}", read_by=_ROLLOUT)
            for name in (
                "name",
                "load_format",
                "dtype",
                "tensor_model_parallel_size",
                "log_prob_micro_batch_size_per_gpu",
            )
        ),
        ReadKey(name="algorithm.adv_estimator", read_by=_PPO),
        ReadKey(name="data.max_response_length", read_by=_DATA),
        ReadKey(name="data.max_prompt_length", read_by=_DATA),
        ReadKey(name="trainer.n_gpus_per_node", read_by=_PPO),
        ReadKey(name="trainer.nnodes", read_by=_PPO),
        ReadKey(name="trainer.default_local_dir", read_by=_PPO),
    ),
    files=_files,
    start=_start,
)
