"""slime: Megatron-LM's arguments, and slime's own for the checkpoints of actor and reference.

slime parses Megatron's arguments with Megatron's parser (`slime/backends/megatron_utils/arguments.py`).
"""

import shlex
from collections.abc import Iterator, Mapping

from ..profile import Profile, ReadKey
from ..trainer_run import TrainerRun
from .megatron_lm import MEGATRON_LM, model_arguments

_TRAINER = "slime (commit f4fcce8)"
ARGUMENTS = "slime_arguments.txt"
_SLIME_PY = "slime/utils/arguments.py"
_OWN = ("--hf-checkpoint", "--ref-load", "--actor-num-nodes", "--actor-num-gpus-per-node", "--num-gpus-per-node")
_LATER = ("--load", "--save")
_NOT_ITS = frozenset(
    {"--pretrained-checkpoint", "--tokenizer-type", "--tokenizer-model", "--ckpt-format", "--vocab-size"}
)
"""slime takes these from `--hf-checkpoint` and `--ref-load`."""


def _files(run: TrainerRun) -> Mapping[str, bytes]:
    lines = [shlex.join(group) for group in arguments(run)]
    return {ARGUMENTS: ("\n".join(lines) + "\n").encode()}


def arguments(run: TrainerRun) -> Iterator[tuple[str, ...]]:
    """An argument with its values at a time."""
    yield "--hf-checkpoint", str(run.hf_weights or run.hf)
    # The reference's checkpoint is the first start's too: `--load` is empty until something is saved.
    yield "--ref-load", str(run.base)
    yield "--load", _saved(run)
    yield "--save", _saved(run)
    yield "--actor-num-nodes", str(-(-run.world_size // 8))
    yield "--actor-num-gpus-per-node", str(min(run.world_size, 8))
    yield "--num-gpus-per-node", str(min(run.world_size, 8))
    for group in model_arguments(run, _TRAINER):
        if group[0] not in _NOT_ITS and group[0] not in _LATER:
            yield group


def _saved(run: TrainerRun) -> str:
    return f"{run.target}-checkpoints"


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
