"""A family's rules written out for one model: every tensor by its full name and shape."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..jobs.errors import InternalError
from .blocks import Address
from .family import Family
from .layouts import RowBlock, Sizes
from .record import Record
from .rules import Drop, Fill, Rule

_LAYER = "{layer}"


@dataclass(frozen=True, slots=True)
class Part:
    """One HF tensor of a binding."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """HF tensors <-> one Megatron tensor (or slice of a stack of `stack`), row block by row block."""

    parts: tuple[Part, ...]
    target: Address
    stack: int | None
    shape: tuple[int, ...]
    row_blocks: tuple[RowBlock, ...]
    like: str
    """An HF tensor whose dtype the target takes."""
    padded: bool
    """The first axis is the vocabulary: a trainer may have padded it."""
    why_filled: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: its family, both configs and the sizes that the rules speak of."""

    family: Family
    hf: Record
    mcore: Record

    @property
    def sizes(self) -> Sizes:
        return self.family.sizes(self.mcore)


def bindings(model: Model) -> Iterator[Binding]:
    """Every binding of the model, layer by layer inside each rule."""
    sizes = model.sizes
    for rule in model.family.rules:
        if rule.when(model.hf):
            yield from _rule_bindings(rule, sizes)
    for fill in model.family.fills:
        if fill.when(model.hf):
            yield from _fill_bindings(fill, sizes)


def drop_reason(model: Model, hf_name: str) -> str | None:
    """Why an HF tensor may be left out, or None."""
    for drop in model.family.drops:
        if drop.when(model.hf) and _pattern(drop).fullmatch(hf_name):
            return drop.why
    return None


def _pattern(drop: Drop) -> re.Pattern[str]:
    return re.compile(re.escape(drop.hf).replace(re.escape(_LAYER), r"\d+"))


def _layers(hf_name: str, sizes: Sizes) -> Iterator[tuple[int | None, int | None]]:
    """(index, stack): (None, None) for a single tensor, (i, L) for each layer."""
    if _LAYER not in hf_name:
        yield None, None
        return
    for layer in range(sizes["layers"]):
        yield layer, sizes["layers"]


def _rule_bindings(rule: Rule, sizes: Sizes) -> Iterator[Binding]:
    for layer, stack in _layers(rule.hf[0].name, sizes):
        parts = tuple(
            Part(tensor.name.replace(_LAYER, str(layer)), tuple(sizes[size] for size in tensor.shape))
            for tensor in rule.hf
        )
        part_rows = tuple(part.shape[0] for part in parts)
        row_blocks = rule.layout.row_blocks(part_rows, sizes)
        _check_tiling(rule, row_blocks, part_rows)
        yield Binding(
            parts=parts,
            target=Address(rule.mcore, layer),
            stack=stack,
            shape=(sum(part_rows), *parts[0].shape[1:]),
            row_blocks=row_blocks,
            like=parts[0].name,
            padded=rule.hf[0].shape[0] == "vocab",
        )


def _fill_bindings(fill: Fill, sizes: Sizes) -> Iterator[Binding]:
    for layer, stack in _layers(fill.like, sizes):
        yield Binding(
            parts=(),
            target=Address(fill.mcore, layer),
            stack=stack,
            shape=tuple(sizes[size] for size in fill.shape),
            row_blocks=(),
            like=fill.like.replace(_LAYER, str(layer)),
            padded=False,
            why_filled=fill.why,
        )


def _check_tiling(rule: Rule, row_blocks: tuple[RowBlock, ...], part_rows: tuple[int, ...]) -> None:
    """Every row of every HF tensor has exactly one place."""
    ends = [0] * len(part_rows)
    for block in sorted(row_blocks, key=lambda block: (block.part, block.start)):
        if block.start != ends[block.part]:
            break
        ends[block.part] += block.rows
    if tuple(ends) != part_rows:
        raise InternalError(
            "internal",
            f"rule for {rule.mcore!r}",
            found=f"row blocks that cover {ends} rows",
            expected=f"each of {list(part_rows)} rows once",
            next_step="The layout is wrong for these sizes: mend it in worker/mapping/layouts.py.",
        )
