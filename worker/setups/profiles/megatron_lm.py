"""Megatron-LM: `pretrain_gpt.py` or `pretrain_hybrid.py` with an argument file.

Source: `megatron.training.arguments` and `argument_utils` of megatron-core 0.19.2, whose parser the tests run.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import cast

from ...checkpoints.iterations import TRACKER
from ...mapping.upstream_classes import VARIANT_FIELDS
from ...mapping.vocabulary import padded_size
from ..ddp_values import ddp_values
from ..profile import Profile, ReadKey
from ..trainer_run import TrainerRun
from .refusal import no_setting, refuse_peft, refuse_variant, step_to_name

_TRAINER = "Megatron-LM (megatron-core 0.19.2)"
ARGUMENTS, START = "arguments.txt", "start.sh"
_ARGUMENTS_PY, _UTILS_PY = "megatron/training/arguments.py", "megatron/training/argument_utils.py"

_PLAIN = {
    "num_layers": "--num-layers",
    "hidden_size": "--hidden-size",
    "ffn_hidden_size": "--ffn-hidden-size",
    "num_attention_heads": "--num-attention-heads",
    "kv_channels": "--kv-channels",
    "vocab_size": "--vocab-size",
    "make_vocab_size_divisible_by": "--make-vocab-size-divisible-by",
    "seq_length": "--max-position-embeddings",
    "position_embedding_type": "--position-embedding-type",
    "rotary_percent": "--rotary-percent",
    "rotary_base": "--rotary-base",
    "seq_len_interpolation_factor": "--rotary-seq-len-interpolation-factor",
    "normalization": "--normalization",
    "layernorm_epsilon": "--norm-epsilon",
    "init_method_std": "--init-method-std",
    "hidden_dropout": "--hidden-dropout",
    "attention_dropout": "--attention-dropout",
    "attention_backend": "--attention-backend",
    "activation_func_clamp_value": "--activation-func-clamp-value",
    "glu_linear_offset": "--glu-linear-offset",
    "softmax_type": "--softmax-type",
    "softmax_scale": "--softmax-scale",
    "window_size": "--window-size",
    "window_attn_skip_freq": "--window-attn-skip-freq",
    "q_lora_rank": "--q-lora-rank",
    "kv_lora_rank": "--kv-lora-rank",
    "qk_head_dim": "--qk-head-dim",
    "qk_pos_emb_head_dim": "--qk-pos-emb-head-dim",
    "v_head_dim": "--v-head-dim",
    "rope_type": "--rope-type",
    "rotary_scaling_factor": "--rotary-scaling-factor",
    "mscale": "--mscale",
    "mscale_all_dim": "--mscale-all-dim",
    "yarn_rotary_scaling_factor": "--rotary-scaling-factor",
    "yarn_original_max_position_embeddings": "--yarn-original-max-position-embeddings",
    "yarn_beta_fast": "--yarn-beta-fast",
    "yarn_beta_slow": "--yarn-beta-slow",
    "yarn_mscale": "--mscale",
    "yarn_mscale_all_dim": "--mscale-all-dim",
    "num_moe_experts": "--num-experts",
    "moe_ffn_hidden_size": "--moe-ffn-hidden-size",
    "moe_latent_size": "--moe-latent-size",
    "moe_layer_freq": "--moe-layer-freq",
    "moe_aux_loss_coeff": "--moe-aux-loss-coeff",
    "moe_router_bias_update_rate": "--moe-router-bias-update-rate",
    "moe_router_dtype": "--moe-router-dtype",
    "moe_router_group_topk": "--moe-router-group-topk",
    "moe_router_load_balancing_type": "--moe-router-load-balancing-type",
    "moe_router_num_groups": "--moe-router-num-groups",
    "moe_router_score_function": "--moe-router-score-function",
    "moe_router_topk": "--moe-router-topk",
    "moe_router_topk_scaling_factor": "--moe-router-topk-scaling-factor",
    "moe_shared_expert_intermediate_size": "--moe-shared-expert-intermediate-size",
    "moe_token_dispatcher_type": "--moe-token-dispatcher-type",
    "mtp_num_layers": "--mtp-num-layers",
    "mtp_loss_scaling_factor": "--mtp-loss-scaling-factor",
    "hybrid_layer_pattern": "--hybrid-layer-pattern",
    "mamba_head_dim": "--mamba-head-dim",
    "mamba_num_groups": "--mamba-num-groups",
    "mamba_num_heads": "--mamba-num-heads",
    "mamba_state_dim": "--mamba-state-dim",
    "experimental_attention_variant": "--experimental-attention-variant",
    "linear_attention_freq": "--linear-attention-freq",
    "linear_conv_kernel_dim": "--linear-conv-kernel-dim",
    "linear_key_head_dim": "--linear-key-head-dim",
    "linear_num_key_heads": "--linear-num-key-heads",
    "linear_num_value_heads": "--linear-num-value-heads",
    "linear_value_head_dim": "--linear-value-head-dim",
}
"""Megatron's values, and the arguments that take them as they are; none is said of a value that is null."""

_WHOLE = ("rotary_base", "seq_len_interpolation_factor")
"""The parser takes whole numbers alone."""

_WHERE_TRUE = {
    "add_qkv_bias": "--add-qkv-bias",
    "apply_query_key_layer_scaling": "--apply-query-key-layer-scaling",
    "attention_output_gate": "--attention-output-gate",
    "attention_softmax_in_fp32": "--attention-softmax-in-fp32",
    "bf16": "--bf16",
    "fp16": "--fp16",
    "cross_entropy_loss_fusion": "--cross-entropy-loss-fusion",
    "first_last_layers_bf16": "--first-last-layers-bf16",
    "fp32_residual_connection": "--fp32-residual-connection",
    "is_hybrid_model": "--is-hybrid-model",
    "layernorm_zero_centered_gamma": "--apply-layernorm-1p",
    "moe_grouped_gemm": "--moe-grouped-gemm",
    "moe_permute_fusion": "--moe-permute-fusion",
    "moe_router_enable_expert_bias": "--moe-router-enable-expert-bias",
    "moe_router_pre_softmax": "--moe-router-pre-softmax",
    "moe_shared_expert_gate": "--moe-shared-expert-gate",
    "moe_shared_expert_overlap": "--moe-shared-expert-overlap",
    "multi_latent_attention": "--multi-latent-attention",
    "qk_layernorm": "--qk-layernorm",
    "rope_scaling": "--use-rope-scaling",
}
_WHERE_FALSE = {
    "add_bias_linear": "--disable-bias-linear",
    "apply_rope_fusion": "--no-rope-fusion",
    "bias_dropout_fusion": "--no-bias-dropout-fusion",
    "masked_softmax_fusion": "--no-masked-softmax-fusion",
    "persist_layer_norm": "--no-persist-layer-norm",
    "share_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
    "yarn_correction_range_round_to_int": "--no-yarn-correction-range-round-to-int",
}
_FIXED: dict[str, object] = {
    "deallocate_pipeline_outputs": True,
    "should_pad_vocab": True,
    "rope_scaling_factor": 8.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
"""Values that the program always takes, since it has no argument for them (or, of Llama 3's factor, drops it)."""
_ELSEWHERE = frozenset({"activation_func", "gated_linear_unit", "bias_activation_fusion", "params_dtype"})
_ELSEWHERE_TOO = frozenset({"num_query_groups"})
_ACTIVATIONS: dict[tuple[str, bool], str | None] = {
    ("silu", True): "--swiglu",
    ("quick_gelu", True): "--quick-geglu",
    ("relu2", False): "--squared-relu",
    ("gelu", False): None,
}

_DDP = {
    "use_distributed_optimizer": "--use-distributed-optimizer",
    "overlap_grad_reduce": "--overlap-grad-reduce",
    "overlap_param_gather": "--overlap-param-gather",
    "average_in_collective": "--ddp-average-in-collective",
    "grad_reduce_in_fp32": "--accumulate-allreduce-grads-in-fp32",
}
_OF_RUN = (
    "--padded-vocab-size",
    "--tensor-model-parallel-size",
    "--pipeline-model-parallel-size",
    "--num-virtual-stages-per-pipeline-rank",
    "--pipeline-model-parallel-layout",
    "--context-parallel-size",
    "--expert-model-parallel-size",
    "--expert-tensor-parallel-size",
    "--sequence-parallel",
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
    "--recompute-granularity",
    "--recompute-method",
    "--recompute-num-layers",
    "--seq-length",
    "--micro-batch-size",
    "--seed",
    "--pretrained-checkpoint",
    "--ckpt-step",
    "--load",
    "--save",
    "--save-interval",
    "--ckpt-format",
    "--tokenizer-type",
    "--tokenizer-model",
    "--ddp-bucket-size",
)


def _files(run: TrainerRun) -> Mapping[str, bytes]:
    _refuse_longer(run)
    return {ARGUMENTS: argument_file(model_arguments(run, _TRAINER)), START: _start_script(run)}


def argument_file(groups: Iterable[tuple[str, ...]]) -> bytes:
    """An argument with its values a line, quoted as a shell reads it."""
    return "".join(f"{shlex.join(group)}\n" for group in groups).encode()


def _refuse_longer(run: TrainerRun) -> None:
    longest = run.model.mcore.positive("seq_length")
    if run.sequence_length > longest:
        next_step = f"Choose at most the model's {longest:,} tokens."
        raise no_setting(_TRAINER, "spec field sequence_length", run.sequence_length, next_step)


def model_arguments(run: TrainerRun, trainer: str) -> Iterator[tuple[str, ...]]:
    """An argument with its values at a time. BadInputError where Megatron's parser has no argument for a value."""
    refuse_peft(run, trainer)
    refuse_variant(run, trainer, VARIANT_FIELDS)
    yield from _of_model(run.model.mcore.values)
    yield from _of_sizes(run)
    yield from _of_training(run)
    yield from _of_ddp(run)


def _of_model(values: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        if name in _PLAIN:
            if value is not None:
                yield _PLAIN[name], _text(name, value)
        elif name in _WHERE_TRUE or name in _WHERE_FALSE:
            if value is (name in _WHERE_TRUE):
                yield ((_WHERE_TRUE | _WHERE_FALSE)[name],)
        elif name in _FIXED:
            _refuse_other(name, value, values)
        elif name not in _ELSEWHERE | _ELSEWHERE_TOO and not name.startswith("hf."):
            raise _missing(name, value)
    yield from _activation(values)
    yield from _groups(values)


def _text(name: str, value: object) -> str:
    match value:
        case tuple() | list() if name == "window_size":
            return f"({','.join(map(str, cast('list[int]', value)))})"
        case tuple() | list():
            return "+".join(f"[{kind}]*{len(list(run))}" for kind, run in groupby(cast("list[int]", value)))
        case float() if name in _WHOLE:
            if not value.is_integer():
                raise _missing(name, value)
            return str(int(value))
        case _:
            return str(value)


def _activation(values: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    kind = str(values.get("activation_func")), bool(values.get("gated_linear_unit"))
    if kind not in _ACTIVATIONS:
        raise _missing("activation_func", f"{kind[0]}{' with a gate' if kind[1] else ''}")
    flag = _ACTIVATIONS[kind]
    if flag is not None:
        yield (flag,)
    if not values.get("bias_activation_fusion", True):
        yield ("--no-bias-swiglu-fusion" if flag == "--swiglu" else "--no-bias-gelu-fusion",)


def _groups(values: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    groups = values.get("num_query_groups")
    if groups is not None and groups != values["num_attention_heads"]:
        yield ("--group-query-attention",)
        yield "--num-query-groups", str(groups)


def _of_sizes(run: TrainerRun) -> Iterator[tuple[str, ...]]:
    sizes = run.parallelism
    # Without it the program takes as many rows as the tokenizer has tokens, often fewer than the model has.
    yield "--padded-vocab-size", str(padded_size(run.model.mcore, sizes.tp_size))
    yield "--tensor-model-parallel-size", str(sizes.tp_size)
    yield "--pipeline-model-parallel-size", str(sizes.pp_size)
    if sizes.pipeline_layout is not None:
        yield "--pipeline-model-parallel-layout", sizes.pipeline_layout
    elif sizes.vpp_size is not None:
        yield "--num-virtual-stages-per-pipeline-rank", str(sizes.vpp_size)
    yield "--context-parallel-size", str(sizes.cp_size)
    yield "--expert-model-parallel-size", str(sizes.ep_size)
    yield "--expert-tensor-parallel-size", str(run.etp_size)
    if run.sequence_parallel:
        yield ("--sequence-parallel",)
    if sizes.first_stage_layers is not None:
        yield "--decoder-first-pipeline-num-layers", str(sizes.first_stage_layers)
    if sizes.last_stage_layers is not None:
        yield "--decoder-last-pipeline-num-layers", str(sizes.last_stage_layers)


def _of_training(run: TrainerRun) -> Iterator[tuple[str, ...]]:
    match run.recompute:
        case "none":
            pass
        case "selective":
            yield "--recompute-granularity", "selective"
        case "full":
            yield "--recompute-granularity", "full"
            yield "--recompute-method", "uniform"
            yield "--recompute-num-layers", "1"
    yield "--seq-length", str(run.sequence_length)
    yield "--micro-batch-size", str(run.micro_batch_size)
    yield "--seed", str(run.seed)
    # A restart goes on from what was saved; only the first start takes the base, and without its optimizer.
    yield "--pretrained-checkpoint", str(run.base)
    yield "--load", run.checkpoints
    yield "--save", run.checkpoints
    yield "--save-interval", "500"
    yield "--ckpt-format", "torch_dist"
    yield "--tokenizer-type", "HuggingFaceTokenizer"
    yield "--tokenizer-model", str(run.hf)


def _of_ddp(run: TrainerRun) -> Iterator[tuple[str, ...]]:
    if run.ddp.use_megatron_fsdp:
        next_step = "Leave it out: with FSDP the program loads checkpoints of its own format alone."
        raise no_setting(_TRAINER, "spec field ddp.use_megatron_fsdp", "true", next_step)
    said = ddp_values(run.ddp)
    for name in run.ddp.overrides:
        if name not in _DDP and name != "bucket_size":
            raise no_setting(_TRAINER, f"spec field ddp.overrides.{name}", said[name], "Leave it out.")
    for name, flag in _DDP.items():
        if said[name]:
            yield (flag,)
    if said["bucket_size"] is not None:
        yield "--ddp-bucket-size", str(said["bucket_size"])


def _refuse_other(name: str, value: object, values: Mapping[str, object]) -> None:
    unused = name == "rope_scaling_factor" and not values.get("rope_scaling")
    if not unused and value != _FIXED[name] and value is not None:
        raise _missing(name, value)


def _missing(name: str, value: object) -> Exception:
    next_step = "Use profile megatron-bridge, or build the model by `mcore_ferry.integration.load_model_config`."
    return no_setting("Megatron-LM's arguments", f"Megatron value {name}", repr(value), next_step)


def _start_script(run: TrainerRun) -> bytes:
    program = "pretrain_gpt.py" if run.model.family.model == "gpt" else "pretrain_hybrid.py"
    text = f"""#!/usr/bin/env bash
# From Megatron-LM's folder: DATA=/path/to/data_text_document bash {shlex.quote(str(run.target / START))}
set -euo pipefail
# The program insists on it with tensor or context parallelism, up to Hopper.
export CUDA_DEVICE_MAX_CONNECTIONS=1
eval "ARGUMENTS=($(cat "$(dirname "$0")/{ARGUMENTS}"))"
{_first_step(run)}
exec torchrun --nproc-per-node "${{GPUS_PER_NODE:-{run.gpus_per_node}}}" --nnodes "${{NODES:-{run.nodes}}}" \\
  --node-rank "${{NODE_RANK:-0}}" --master-addr "${{MASTER_ADDR:-localhost}}" \\
  {program} "${{ARGUMENTS[@]}}" --global-batch-size "${{GLOBAL_BATCH_SIZE:-{run.micro_batch_size * run.dp_size}}}" \\
  --train-iters "${{TRAIN_ITERS:-1000}}" --lr "${{LR:-1e-5}}" --eval-interval "${{EVAL_INTERVAL:-500}}" \
  --data-path "${{DATA:?a .bin/.idx prefix}}" "$@"
"""
    return text.encode()


def _first_step(run: TrainerRun) -> str:
    """Of the first start alone: later ones would look for that iteration among what was saved."""
    step = step_to_name(run, _TRAINER)
    if step is None:
        return ""
    saved = shlex.quote(f"{run.checkpoints}/{TRACKER}")
    return f"# The base's tracker file names another iteration.\n[ -e {saved} ] || ARGUMENTS+=(--ckpt-step {step})"


def _start(run: TrainerRun) -> tuple[str, str, str]:
    script = shlex.quote(str(run.target / START))
    return (
        f"`{ARGUMENTS}` is read by Megatron-LM's own parser; the base is `{run.base}`.",
        f"Start in Megatron-LM's folder, on {run.world_size} GPUs: `DATA=... bash {script}`.",
        f"Set first: DATA, GLOBAL_BATCH_SIZE, TRAIN_ITERS and LR; checkpoints go to `{run.checkpoints}`.",
    )


_IN_UTILS = frozenset({"--use-rope-scaling", "--swiglu", "--quick-geglu", "--squared-relu"})

MEGATRON_LM = Profile(
    name="megatron-lm",
    trainer=_TRAINER,
    keys=tuple(
        ReadKey(name=flag, read_by=_UTILS_PY if flag in _IN_UTILS else _ARGUMENTS_PY)
        for flag in dict.fromkeys(
            (
                *_PLAIN.values(),
                *_WHERE_TRUE.values(),
                *_WHERE_FALSE.values(),
                *(flag for flag in _ACTIVATIONS.values() if flag),
                "--no-bias-swiglu-fusion",
                "--no-bias-gelu-fusion",
                "--group-query-attention",
                "--num-query-groups",
                *_OF_RUN,
                *_DDP.values(),
            )
        )
    ),
    files=_files,
    start=_start,
)
