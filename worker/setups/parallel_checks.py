"""Whether a model can be cut as a run asks: what Megatron-Core would assert on every rank, said before that.

Source: `TransformerConfig.__post_init__`, `initialize_model_parallel`, the layers themselves and `validate_args` of
megatron-core 0.19.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ..jobs.errors import BadInputError
from .stages import fewest_gpus, layers_per_stage
from .trainer_run import TrainerRun


@dataclass(frozen=True, slots=True)
class _Problem:
    field: str
    found: str
    expected: str


def refuse_impossible(run: TrainerRun) -> None:
    """BadInputError names the first size that does not fit the model, or the others."""
    for problem in _problems(run):
        raise BadInputError(
            "bad_request",
            f"spec field {problem.field}",
            found=problem.found,
            expected=problem.expected,
            next_step="Choose another size.",
        )


def is_possible(run: TrainerRun) -> bool:
    """Whether nothing stands against it."""
    return next(_problems(run), None) is None


def _problems(run: TrainerRun) -> Iterator[_Problem]:
    yield from _tensor_parallel(run)
    yield from _experts(run)
    yield from _pipeline(run)
    yield from _sequence(run)
    yield from _world(run)


def _tensor_parallel(run: TrainerRun) -> Iterator[_Problem]:
    tp, values = run.parallelism.tp_size, run.model.mcore
    field = "parallelism.tp_size"
    heads = values.positive("num_attention_heads")
    groups = values.integer("num_query_groups", heads)
    if heads % tp:
        yield _Problem(field, str(tp), f"a divisor of the {heads} attention heads")
    if not values.get("multi_latent_attention") and groups % tp and tp % groups:
        yield _Problem(field, str(tp), f"a divisor or a multiple of the {groups} query groups")
    for name, what in _CUT_BY_TP:
        size = values.get(name)
        if isinstance(size, int) and size % tp:
            yield _Problem(field, str(tp), f"a divisor of {what}, {size:,}")
    if values.get("linear_attention_freq") is not None:
        for name in ("linear_num_key_heads", "linear_num_value_heads"):
            if values.positive(name) % tp:
                yield _Problem(field, str(tp), f"a divisor of {name}, {values.positive(name)}")


_CUT_BY_TP = (
    ("ffn_hidden_size", "the size of the MLP"),
    ("moe_shared_expert_intermediate_size", "the size of the shared experts"),
    ("mamba_num_heads", "the Mamba heads"),
    ("mamba_num_groups", "the Mamba groups"),
)


def _experts(run: TrainerRun) -> Iterator[_Problem]:
    sizes, values = run.parallelism, run.model.mcore
    experts = values.get("num_moe_experts")
    if not isinstance(experts, int):
        if sizes.ep_size > 1:
            yield _Problem("parallelism.ep_size", str(sizes.ep_size), "1, since the model has no experts")
        return
    if experts % sizes.ep_size:
        yield _Problem("parallelism.ep_size", str(sizes.ep_size), f"a divisor of the {experts} experts")
    width = values.integer("moe_ffn_hidden_size", values.positive("ffn_hidden_size"))
    if width % run.etp_size:
        yield _Problem("parallelism.etp_size", str(run.etp_size), f"a divisor of an expert's size, {width:,}")
    if sizes.tp_size > 1 and not run.sequence_parallel:
        yield _Problem("parallelism.sequence_parallel", "false", "true: with experts and TP, training asks for it")


def _pipeline(run: TrainerRun) -> Iterator[_Problem]:
    sizes, layers = run.parallelism, run.model.mcore.positive("num_layers")
    uneven = sizes.first_stage_layers is not None or sizes.last_stage_layers is not None
    if sizes.pp_size == 1 and uneven:
        yield _Problem("parallelism.first_stage_layers, last_stage_layers", "one stage", "none, or a larger pp_size")
    elif sizes.pp_size == 1 and sizes.vpp_size is not None:
        yield _Problem("parallelism.vpp_size", str(sizes.vpp_size), "none, or a pp_size above 1")
    elif layers_per_stage(layers, sizes) is None:
        found = f"{sizes.pp_size} stages" + (f" of {sizes.vpp_size} chunks" if sizes.vpp_size else "")
        given = (sizes.first_stage_layers, sizes.last_stage_layers)
        if uneven:
            found += f", the first and the last of {given[0] or 'as many'} and {given[1] or 'as many'} layers"
        expected = f"a number that deals out {layers} layers evenly"
        more = "" if uneven else "; or uneven stages, by first_stage_layers and last_stage_layers"
        yield _Problem("parallelism.pp_size", found, expected + more)
    pattern = run.model.mcore.get("hybrid_layer_pattern")
    if pattern is not None and (uneven or sizes.vpp_size is not None):
        yield _Problem("parallelism.vpp_size, first_stage_layers, last_stage_layers", "set", "none in a hybrid model")


def _sequence(run: TrainerRun) -> Iterator[_Problem]:
    sizes, length = run.parallelism, run.sequence_length
    if sizes.sequence_parallel and sizes.tp_size == 1:
        yield _Problem("parallelism.sequence_parallel", "true", "a tp_size above 1, over which the sequence is cut")
    if sizes.cp_size > 1 and length % (2 * sizes.cp_size):
        yield _Problem("sequence_length", str(length), f"a multiple of 2 x cp_size, {2 * sizes.cp_size}")
    elif run.sequence_parallel and (length // sizes.cp_size) % sizes.tp_size:
        yield _Problem(
            "sequence_length", str(length), f"a multiple of cp_size x tp_size, {sizes.cp_size * sizes.tp_size}"
        )
    longest = run.model.mcore.get("seq_length")
    if isinstance(longest, int) and length > longest:
        yield _Problem("sequence_length", f"{length:,}", f"at most the model's {longest:,} positions")


def _world(run: TrainerRun) -> Iterator[_Problem]:
    fewest = fewest_gpus(run.parallelism)
    sizes = run.parallelism
    model, expert = sizes.tp_size * sizes.cp_size * sizes.pp_size, run.etp_size * sizes.ep_size * sizes.pp_size
    if run.world_size % model or run.world_size % expert:
        yield _Problem(
            "parallelism.world_size",
            str(run.world_size),
            f"a multiple of {fewest}: of TP x CP x PP, {model}, and of ETP x EP x PP, {expert}",
        )
