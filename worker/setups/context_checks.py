"""What context parallelism cannot cut: attention that needs other tokens' scores, and heads too few to share out.

Sources: `attn_forward_func_with_cp` of Transformer Engine 2 under `p2p`, which `TEDotProductAttention` of megatron-core
0.19 takes unless told otherwise (of sinks: TransformerEngine issue 2541); `DotProductAttention`, `MambaContextParallel`
and `TransformerConfig.__post_init__` of megatron-core 0.19.
"""

from collections.abc import Iterator

from ..mapping.record import Record
from .problem import Problem
from .trainer_run import TrainerRun

_FIELD = "parallelism.cp_size"
_NEXT = "Leave context parallelism out (cp_size 1), and cut long sequences by tp_size."


def context_problems(run: TrainerRun) -> Iterator[Problem]:
    """None at a `cp_size` of 1."""
    if run.parallelism.cp_size > 1:
        yield from _attention(run)
        yield from _mamba(run)
        yield from _delta_net(run)


def _attention(run: TrainerRun) -> Iterator[Problem]:
    found, values = str(run.parallelism.cp_size), run.model.mcore
    for name, what in (("window_size", "sliding windows"), ("attention_logit_softcap", "softcapped scores")):
        if values.get(name) is not None:
            yield Problem(_FIELD, found, f"1: attention of ranks in a ring has no {what}, and the model has", _NEXT)
    if values.get("softmax_type") not in (None, "vanilla"):
        yield Problem(_FIELD, found, "1: attention of ranks in a ring has no sinks, and the model has", _NEXT)


def _mamba(run: TrainerRun) -> Iterator[Problem]:
    sizes, values = run.parallelism, run.model.mcore
    if not _has_mamba(values):
        return
    heads, groups = values.positive("mamba_num_heads"), values.positive("mamba_num_groups") // sizes.tp_size
    if heads % (sizes.tp_size * sizes.cp_size):
        yield Problem(_FIELD, str(sizes.cp_size), f"one whose product with tp_size divides the {heads} Mamba heads")
    if groups and groups % sizes.cp_size and sizes.cp_size % groups:
        each = f"{groups} Mamba groups of a tensor-parallel rank"
        yield Problem(_FIELD, str(sizes.cp_size), f"a divisor or a multiple of the {each}")


def _has_mamba(values: Record) -> bool:
    return "M" in values.text("hybrid_layer_pattern", "")


def _delta_net(run: TrainerRun) -> Iterator[Problem]:
    sizes, values = run.parallelism, run.model.mcore
    if values.get("linear_attention_freq") is None:
        return
    for name in ("linear_num_key_heads", "linear_num_value_heads"):
        if values.positive(name) % (sizes.tp_size * sizes.cp_size):
            expected = f"one whose product with tp_size divides {name}, {values.positive(name)}"
            yield Problem(_FIELD, str(sizes.cp_size), expected)
