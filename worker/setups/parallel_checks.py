"""Whether a model can be cut as a run asks: what Megatron-Core would assert on every rank, said before that.

Source: `TransformerConfig.__post_init__`, `initialize_model_parallel`, the layers themselves and `validate_args` of
megatron-core 0.19.
"""

from collections.abc import Iterator

from ..jobs.errors import BadInputError
from ..jobs.setup_spec import Parallelism
from .adapter_checks import adapter_problems
from .context_checks import context_problems
from .ddp_values import ddp_values
from .layout import layout_problems
from .problem import Problem
from .stages import fewest_gpus, layers_per_stage, uneven_stages
from .trainer_run import TrainerRun


def refuse_impossible(run: TrainerRun) -> None:
    """BadInputError names the first size that does not fit the model, or the others."""
    for problem in _problems(run):
        raise BadInputError(
            "bad_request",
            f"spec field {problem.field}",
            found=problem.found,
            expected=problem.expected,
            next_step=problem.next_step,
        )


def is_possible(run: TrainerRun) -> bool:
    """Whether nothing stands against it."""
    return next(_problems(run), None) is None


def _problems(run: TrainerRun) -> Iterator[Problem]:
    yield from _tensor_parallel(run)
    yield from _experts(run)
    yield from _pipeline(run)
    yield from _sequence(run)
    yield from context_problems(run)
    yield from _world(run)
    yield from _optimizer_instances(run)
    yield from adapter_problems(run)


def _tensor_parallel(run: TrainerRun) -> Iterator[Problem]:
    tp, values = run.parallelism.tp_size, run.model.mcore
    field = "parallelism.tp_size"
    heads = values.positive("num_attention_heads")
    groups = values.integer("num_query_groups", heads)
    if heads % tp:
        yield Problem(field, str(tp), f"a divisor of the {heads} attention heads")
    if groups % tp and values.get("qk_norm_width") == "full":
        yield Problem(field, str(tp), f"a divisor of the {groups} query groups, whose keys are normed over all heads")
    elif not values.get("multi_latent_attention") and groups % tp and tp % groups:
        yield Problem(field, str(tp), f"a divisor or a multiple of the {groups} query groups")
    for name, what in _CUT_BY_TP:
        size = values.get(name)
        if isinstance(size, int) and size % tp:
            yield Problem(field, str(tp), f"a divisor of {what}, {size:,}")
    if values.get("linear_attention_freq") is not None:
        for name in ("linear_num_key_heads", "linear_num_value_heads"):
            if values.positive(name) % tp:
                yield Problem(field, str(tp), f"a divisor of {name}, {values.positive(name)}")


_CUT_BY_TP = (
    ("ffn_hidden_size", "the size of the MLP"),
    ("moe_shared_expert_intermediate_size", "the size of the shared experts"),
    ("mamba_num_heads", "the Mamba heads"),
    ("mamba_num_groups", "the Mamba groups"),
)


def _experts(run: TrainerRun) -> Iterator[Problem]:
    sizes, values = run.parallelism, run.model.mcore
    experts = values.get("num_moe_experts")
    if not isinstance(experts, int):
        if sizes.ep_size > 1:
            yield Problem("parallelism.ep_size", str(sizes.ep_size), "1, since the model has no experts")
        if (sizes.etp_size or 1) > 1:
            yield Problem("parallelism.etp_size", str(sizes.etp_size), "1, since the model has no experts")
        return
    if experts % sizes.ep_size:
        yield Problem("parallelism.ep_size", str(sizes.ep_size), f"a divisor of the {experts} experts")
    width = values.integer("moe_ffn_hidden_size", values.positive("ffn_hidden_size"))
    if width % run.etp_size:
        yield Problem("parallelism.etp_size", str(run.etp_size), f"a divisor of an expert's size, {width:,}")
    if values.get("add_bias_linear") and run.etp_size > 1:
        expected = "1: Megatron-Core adds the biases of experts whole on every rank that shares an expert"
        yield Problem(
            "parallelism.etp_size",
            str(run.etp_size),
            expected,
            "Set etp_size to 1 (--etp 1), and cut experts by ep_size (--ep).",
        )
    if sizes.tp_size > 1 and not run.sequence_parallel:
        yield Problem("parallelism.sequence_parallel", "false", "true: with experts and TP, training asks for it")


def _pipeline(run: TrainerRun) -> Iterator[Problem]:
    sizes, layers = run.parallelism, run.model.mcore.positive("num_layers")
    if sizes.pipeline_layout is not None:
        yield from layout_problems(run)
        return
    uneven = sizes.first_stage_layers is not None or sizes.last_stage_layers is not None
    if sizes.pp_size == 1 and uneven:
        yield Problem("parallelism.first_stage_layers, last_stage_layers", "one stage", "none, or a larger pp_size")
    elif sizes.pp_size == 1 and sizes.vpp_size is not None:
        yield Problem("parallelism.vpp_size", str(sizes.vpp_size), "none, or a pp_size above 1")
    elif layers_per_stage(layers, sizes) is None:
        found = f"{sizes.pp_size} stages" + (f" of {sizes.vpp_size} chunks" if sizes.vpp_size else "")
        given = (sizes.first_stage_layers, sizes.last_stage_layers)
        if uneven:
            found += f", the first and the last of {given[0] or 'as many'} and {given[1] or 'as many'} layers"
        expected = f"a number that deals out {layers} layers evenly"
        expected += f", and those of each stage to {sizes.vpp_size} chunks" if sizes.vpp_size else ""
        yield Problem("parallelism.pp_size", found, expected, _evener(layers, sizes))
    if run.model.mcore.get("hybrid_layer_pattern") is not None and sizes.vpp_size is not None:
        expected = "none in a hybrid model, whose stages Megatron-Core cuts into chunks by `|` in the pattern alone"
        yield Problem("parallelism.vpp_size", str(sizes.vpp_size), expected, "Leave it out.")


def _evener(layers: int, sizes: Parallelism) -> str:
    for first, last in () if sizes.vpp_size else uneven_stages(layers, sizes.pp_size):
        named = [("--first-stage-layers", first), ("--last-stage-layers", last)]
        return f"Add {' '.join(f'{name} {count}' for name, count in named if count)}, or choose another size."
    return "Choose another size."


def _sequence(run: TrainerRun) -> Iterator[Problem]:
    sizes, length = run.parallelism, run.sequence_length
    if sizes.sequence_parallel and sizes.tp_size == 1:
        yield Problem("parallelism.sequence_parallel", "true", "a tp_size above 1, over which the sequence is cut")
    if sizes.cp_size > 1 and length % (2 * sizes.cp_size):
        yield Problem("sequence_length", str(length), f"a multiple of 2 x cp_size, {2 * sizes.cp_size}")
    elif run.sequence_parallel and (length // sizes.cp_size) % sizes.tp_size:
        yield Problem(
            "sequence_length", str(length), f"a multiple of cp_size x tp_size, {sizes.cp_size * sizes.tp_size}"
        )
    longest = run.model.mcore.get("seq_length")
    if isinstance(longest, int) and length > longest:
        yield Problem("sequence_length", f"{length:,}", f"at most the model's {longest:,} positions")


def _world(run: TrainerRun) -> Iterator[Problem]:
    fewest = fewest_gpus(run.parallelism)
    sizes = run.parallelism
    model, expert = sizes.tp_size * sizes.cp_size * sizes.pp_size, run.etp_size * sizes.ep_size * sizes.pp_size
    if run.world_size % model or run.world_size % expert:
        yield Problem(
            "parallelism.world_size",
            str(run.world_size),
            f"a multiple of {fewest}: of TP x CP x PP, {model}, and of ETP x EP x PP, {expert}",
        )


def _optimizer_instances(run: TrainerRun) -> Iterator[Problem]:
    name = "num_distributed_optimizer_instances"
    instances = ddp_values(run.ddp)[name]
    assert isinstance(instances, int)
    counts = (("data-parallel ranks", run.replicas), ("data-parallel ranks of experts", run.expert_replicas))
    for what, count in counts:
        if instances < 1 or count % instances:
            yield Problem(f"ddp.overrides.{name}", str(instances), f"a divisor of the {count} {what}")
            return
