"""Which layers each pipeline stage holds, chunk by chunk, as Megatron-Core deals them out."""

from collections.abc import Iterator

from ..jobs.setup_spec import Parallelism


def fewest_gpus(sizes: Parallelism) -> int:
    """The least world size: dense layers ask for TP x CP x PP, experts for ETP x EP x PP; both must divide it."""
    dense, expert = sizes.tp_size * sizes.cp_size, (sizes.etp_size or sizes.tp_size) * sizes.ep_size
    world = dense
    while world % expert:
        world += dense
    return world * sizes.pp_size


def layers_per_stage(layers: int, sizes: Parallelism) -> tuple[int, ...] | None:
    """How many each stage holds; None where they cannot be dealt out evenly.

    Source: `get_num_layers_to_build` and `TransformerConfig.__post_init__` of megatron-core 0.19.
    """
    given = {0: sizes.first_stage_layers, sizes.pp_size - 1: sizes.last_stage_layers}
    fixed = {stage: count for stage, count in given.items() if count is not None}
    middle, left = sizes.pp_size - len(fixed), layers - sum(fixed.values())
    if left < 0 or bool(middle) != bool(left) or (middle and left % middle):
        return None
    each = left // middle if middle else 0
    counts = tuple(fixed.get(stage, each) for stage in range(sizes.pp_size))
    return None if any(count % (sizes.vpp_size or 1) for count in counts) else counts


def uneven_stages(layers: int, pp_size: int) -> Iterator[tuple[int | None, int | None]]:
    """(first_stage_layers, last_stage_layers) where layers do not divide: no stage holds more than it must.

    The last stage alone has fewer, since it has the logits too; or, where that leaves it none, both ends have.
    """
    most = -(-layers // pp_size)
    last, ends = layers - most * (pp_size - 1), layers - most * (pp_size - 2)
    if pp_size > 1 and 0 < last < most:
        yield None, last
    elif pp_size > 2 and 1 < ends < 2 * most:
        yield -(-ends // 2), ends // 2


def chunks_of_stages(counts: tuple[int, ...], chunks: int) -> tuple[tuple[range, ...], ...]:
    """For each stage, its chunks' layers: stages take turns, one chunk a turn."""
    dealt: list[list[range]] = [[] for _ in counts]
    first = 0
    for _ in range(chunks):
        for stage, count in enumerate(counts):
            dealt[stage].append(range(first, first + count // chunks))
            first += count // chunks
    return tuple(tuple(of) for of in dealt)
