"""A Megatron adapter as PEFT's tensors: A is shared by what a layer fuses, B and magnitudes are taken apart by rows."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..checkpoints.torch_dist import TorchDistFolder
from ..jobs.errors import BadInputError
from ..mapping.blocks import Address, Block, Plan, Task
from .linears import Linear
from .mcore_config import McoreAdapterConfig
from .mcore_folder import AdaptedLinear, McoreAdapter, McoreFactors
from .peft_config import PeftConfig
from .peft_folder import PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftTensors:
    """What is written, and the rank of every module."""

    plan: Plan
    ranks: Mapping[str, int]


def peft_tensors(adapter: McoreAdapter, weights: TorchDistFolder) -> PeftTensors:
    """Tasks in HF's order of modules. BadInputError where a magnitude's rows cannot be told apart."""
    tasks: list[Task] = []
    ranks: dict[str, int] = {}
    for adapted in adapter.layers:
        for piece, factors, blocks in _split(adapted):
            module = adapted.layer.pieces[piece].module
            ranks[module] = factors.rank
            tasks += _tasks(weights, f"{PREFIX}{module}", factors, blocks, adapted.layer, piece)
    tasks.sort(key=_order)
    return PeftTensors(plan=Plan(tasks=tuple(tasks), dropped=adapter.left), ranks=ranks)


def peft_config(config: McoreAdapterConfig, ranks: Mapping[str, int], base: str | None) -> PeftConfig:
    """What PEFT calls such an adapter of `base`."""
    return PeftConfig(
        base_model_name_or_path=base,
        r=config.dim,
        lora_alpha=config.alpha,
        use_dora=config.type == "dora",
        target_modules=frozenset(ranks),
        rank_pattern=_rank_pattern(config.dim, ranks),
    )


def _rank_pattern(rank: int, ranks: Mapping[str, int]) -> dict[str, int]:
    """One key for all modules that differ in their numbers alone, as experts do, where their rank is the same."""
    by_kind: dict[str, dict[str, int]] = {}
    for module, own in ranks.items():
        by_kind.setdefault(re.sub(r"\d+", r"\\d+", re.escape(module)), {})[module] = own
    found: dict[str, int] = {}
    for kind, modules in by_kind.items():
        alike = len(set(modules.values())) == 1
        found |= {kind: next(iter(modules.values()))} if alike else {re.escape(name): r for name, r in modules.items()}
    return {key: own for key, own in found.items() if own != rank}


def _split(adapted: AdaptedLinear) -> Iterator[tuple[int, McoreFactors, list[tuple[int, int]]]]:
    """Each piece's number, the factors that hold it, and which rows of B are its own, from its first to its last."""
    layer = adapted.layer
    for component, factors in adapted.factors.items():
        if component:
            number = layer.components.index(component)
            yield number, factors, [(0, layer.pieces[number].rows)]
            continue
        for number in range(len(layer.pieces)):
            yield number, factors, _own_rows(layer, number)


def _own_rows(layer: Linear, number: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int, int]] = []
    position = 0
    for block in layer.row_blocks:
        if block.part == number:
            found.append((block.start, position, block.rows))
        position += block.rows
    return [(at, rows) for _, at, rows in sorted(found)]


def _tasks(
    weights: TorchDistFolder,
    module: str,
    factors: McoreFactors,
    rows: list[tuple[int, int]],
    layer: Linear,
    piece: int,
) -> Iterator[Task]:
    count = sum(number for _, number in rows)
    a = (Block(factors.a, 0, factors.rank),)
    yield _task(weights, f"{module}.lora_A.weight", (factors.rank, layer.columns), a)
    b = tuple(Block(factors.b, at, number) for at, number in rows)
    yield _task(weights, f"{module}.lora_B.weight", (count, factors.rank), b)
    if factors.magnitude is not None:
        own = _by_rank(weights, factors.magnitude, layer, piece) or rows
        blocks = tuple(Block(factors.magnitude, at, number) for at, number in own)
        yield _task(weights, f"{module}.lora_magnitude_vector", (count,), blocks)


def _by_rank(weights: TorchDistFolder, magnitude: Address, layer: Linear, piece: int) -> list[tuple[int, int]] | None:
    """Rows of a gated layer's magnitude as Megatron-Bridge saves them with tensor parallelism.

    Its ranks' shards stand one after the other, each gate then up, while B has all of gate before all of up
    (dora_layers.py saves the magnitude without MLP's factory). Each shard is a chunk. None where there is but one.
    """
    cuts = {chunk.offsets[-1]: chunk.sizes[-1] for chunk in weights.chunks[magnitude.name]}
    if layer.leaf != "linear_fc1" or len(layer.pieces) != 2 or len(cuts) == 1:
        return None
    if len(set(cuts.values())) > 1 or next(iter(cuts.values())) % 2:
        raise BadInputError(
            "bad_tensor",
            f"adapter {weights.folder}: tensor '{magnitude}'",
            found=f"chunks of {sorted(cuts.values())} rows",
            expected="a chunk for each tensor-parallel rank, gate and up in each",
            next_step="Save the adapter again at a tensor-parallel size of 1.",
        )
    half = next(iter(cuts.values())) // 2
    return [(at + piece * half, half) for at in sorted(cuts)]


def _task(weights: TorchDistFolder, name: str, shape: tuple[int, ...], blocks: tuple[Block, ...]) -> Task:
    dtype = weights.tensors[blocks[0].source.name].dtype
    return Task(target=Address(name), dtype=dtype, shape=shape, blocks=blocks)


def _order(task: Task) -> list[tuple[bool, int, str]]:
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in task.target.name.split(".")]
