"""slime: Megatron-LM's arguments, and slime's own for the checkpoints of actor and reference.

slime parses Megatron's arguments with Megatron's parser (`slime/backends/megatron_utils/arguments.py`).
"""

import shlex
from collections.abc import Iterator, Mapping

from ..profile import Profile, ReadKey
from ..trainer_run import TrainerRun
from .megatron_lm import MEGATRON_LM, argument_file, model_arguments
from .refusal import no_setting, step_to_name

_TRAINER = "slime (commit f4fcce8)"
ARGUMENTS = "slime_arguments.txt"
_SLIME_PY = "slime/utils/arguments.py"
_OWN = (
    "--hf-checkpoint",
    "--ref-load",
    "--ref-ckpt-step",
    "--actor-num-nodes",
    "--actor-num-gpus-per-node",
    "--num-gpus-per-node",
)
_LATER = ("--load", "--save")
_NOT_ITS = frozenset({"--pretrained-checkpoint", "--tokenizer-type", "--tokenizer-model", "--ckpt-format"})
"""slime takes these from `--hf-checkpoint` and `--ref-load`. `--vocab-size` is its own: it cuts padding off by that."""
_OTHER_MODELS = ("hybrid_layer_pattern", "experimental_attention_variant", "seq_len_interpolation_factor")
"""What slime's own builder of models (`slime/backends/megatron_utils/model_provider.py`) does not hand on."""


def _files(run: TrainerRun) -> Mapping[str, bytes]:
    return {ARGUMENTS: argument_file(arguments(run))}


def arguments(run: TrainerRun) -> Iterator[tuple[str, ...]]:
    """An argument with its values at a time."""
    _refuse(run)
    yield "--hf-checkpoint", str(run.hf_weights or run.hf)
    # The reference's checkpoint is the first start's too: `--load` is empty until something is saved.
    yield "--ref-load", str(run.base)
    step = step_to_name(run, _TRAINER)
    if step is not None:
        yield "--ref-ckpt-step", str(step)
    yield "--load", run.checkpoints
    yield "--save", run.checkpoints
    yield "--actor-num-nodes", str(run.nodes)
    yield "--actor-num-gpus-per-node", str(run.gpus_per_node)
    yield "--num-gpus-per-node", str(run.gpus_per_node)
    for group in model_arguments(run, _TRAINER):
        if group[0] not in _NOT_ITS and group[0] not in _LATER:
            yield group


def _refuse(run: TrainerRun) -> None:
    """What slime sets by itself, whatever it is told (`slime/backends/megatron_utils/arguments.py`)."""
    if run.dtype == "fp32":
        raise no_setting(_TRAINER, "spec field dtype", run.dtype, "Choose `bf16` or `fp16`.")
    if not run.ddp.use_distributed_optimizer:
        raise no_setting(_TRAINER, "spec field ddp.use_distributed_optimizer", "false", "Leave it out.")
    for name in _OTHER_MODELS:
        value = run.model.mcore.get(name)
        if value is not None:
            raise no_setting(_TRAINER, f"Megatron value {name}", value, "Use profile megatron-lm or megatron-bridge.")


def _start(run: TrainerRun) -> tuple[str, str, str]:
    return (
        f"`{ARGUMENTS}` holds slime's arguments for model, parallelism and checkpoints; the base is `{run.base}`.",
        f'Start in slime\'s folder: `eval "ARGS=($(cat {shlex.quote(str(run.target / ARGUMENTS))}))"`, then '
        '`ray job submit -- python3 train.py "${ARGS[@]}" ...`.',
        "Set first: --prompt-data, --rm-type, --rollout-batch-size, --global-batch-size, --rollout-num-gpus"
        + (", and SGLang's weights (--hf-checkpoint), which are not here." if run.hf_weights is None else "."),
    )


SLIME = Profile(
    name="slime",
    trainer=_TRAINER,
    keys=(
        *(ReadKey(name=name, read_by=_SLIME_PY) for name in (*_OWN, *_LATER)),
        *(key for key in MEGATRON_LM.keys if key.name not in _NOT_ITS and key.name not in _LATER),
    ),
    files=_files,
    start=_start,
)
