"""A family's rules written out for one model: every tensor by its full name and shape."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from ..jobs.errors import InternalError
from ..jobs.spec_fields import LayerKeys
from .blocks import Address, Permutation
from .family import Family
from .layer_sets import one_stack
from .layouts import Permuted, RowBlock, Sizes, sized
from .precision import HELD_IN_FP32
from .record import Record
from .rules import Drop, Fill, HFTensor, Rule

_LAYER, _EXPERT = "{layer}", "{expert}"
_DECODER = "decoder.layers."
_EXPERTS = "experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One HF tensor of a binding, or one slice of it."""

    source: Address
    stack: tuple[int, ...]
    shape: tuple[int, ...]
    """Of the slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """HF tensors <-> one Megatron tensor (or slice of a stack of `stack`): row block by row block, or permuted."""

    parts: tuple[Part, ...]
    target: Address
    stack: tuple[int, ...]
    shape: tuple[int, ...]
    row_blocks: tuple[RowBlock, ...]
    permutation: Permutation | None = None
    """Of the one part's elements; then there are no row blocks."""
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
    layer_keys: LayerKeys = "stacked"
    """Of its Megatron checkpoint. Layers that are not alike have keys of their own in any case."""

    @property
    def is_stacked(self) -> bool:
        """Whether one Megatron tensor holds all decoder layers."""
        return self.layer_keys == "stacked" and one_stack(self.mcore)

    @property
    def sizes(self) -> Sizes:
        return self.family.sizes(self.mcore)


def bindings(model: Model) -> tuple[Binding, ...]:
    """Every binding of the model, layer by layer inside each rule. InternalError where they do not tile exactly."""
    bound = tuple(_all_bindings(model))
    _check_sources(model.family, bound)
    _check_targets(model.family, bound)
    return bound


def drop_reason(model: Model, hf_name: str) -> str | None:
    """Why an HF tensor may be left out, or None."""
    for drop in model.family.drops:
        if drop.when(model.hf) and _pattern(drop).fullmatch(hf_name):
            return drop.why
    return None


def copies(model: Model) -> dict[str, str]:
    """HF tensors that repeat another, and which."""
    return {
        copy.hf.replace(_LAYER, str(hf_layer)): copy.of
        for copy in model.family.copies
        if copy.when(model.hf)
        for hf_layer, _ in copy.layers(model.mcore)
    }


def held_in_fp32(model: Model) -> frozenset[str]:
    """HF's and Megatron's names of the tensors that no cast touches."""
    held = [binding for binding in bindings(model) if binding.target.name.endswith(HELD_IN_FP32)]
    return frozenset(name for b in held for name in (b.target.name, *(part.source.name for part in b.parts)))


def _pattern(drop: Drop) -> re.Pattern[str]:
    pattern = re.escape(drop.hf)
    for placeholder in (_LAYER, _EXPERT):
        pattern = pattern.replace(re.escape(placeholder), r"\d+")
    return re.compile(pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """One layer and expert of a rule; None where its names have no such placeholder."""

    hf_layer: int | None
    mcore_layer: int | None
    expert: int | None
    sizes: Sizes
    one_stack: bool

    def part(self, tensor: HFTensor) -> Part:
        name = tensor.name.replace(_LAYER, str(self.hf_layer)).replace(_EXPERT, str(self.expert))
        stacked = tensor.stacked is not None and self.expert is not None
        return Part(
            source=Address(name, (self.expert,) if stacked and self.expert is not None else ()),
            stack=(self.sizes[tensor.stacked],) if tensor.stacked else (),
            shape=sized(tensor.shape, self.sizes),
        )

    def target(self, mcore: str) -> tuple[Address, tuple[int, ...]]:
        """Megatron's address, and the axes of the stack that it is a slice of."""
        name, index, stack = mcore, (), ()
        if self.mcore_layer is not None and self.one_stack and name.startswith(_DECODER + _LAYER + "."):
            name = name.replace(_LAYER + ".", "", 1)
            index, stack = (self.mcore_layer,), (self.sizes["layers"],)
        if self.expert is not None:
            index, stack = (*index, self.expert), (*stack, self.sizes[_EXPERTS])
        return Address(name.replace(_LAYER, str(self.mcore_layer)), index), stack


def _places(rule: Rule | Fill, per_layer: bool, per_expert: bool, model: Model, sizes: Sizes) -> Iterator[_Place]:
    layers = rule.layers(model.mcore) if per_layer else ((None, None),)
    stacked = model.is_stacked
    for hf_layer, mcore_layer in layers:
        for expert in range(sizes[_EXPERTS]) if per_expert else (None,):
            yield _Place(hf_layer=hf_layer, mcore_layer=mcore_layer, expert=expert, sizes=sizes, one_stack=stacked)


def _all_bindings(model: Model) -> Iterator[Binding]:
    sizes = model.sizes
    for rule in model.family.rules:
        if rule.when(model.hf):
            first = rule.hf[0]
            per_expert = _EXPERT in first.name or first.stacked is not None
            for place in _places(rule, _LAYER in rule.mcore, per_expert, model, sizes):
                yield _rule_binding(rule, place)
    for fill in model.family.fills:
        if fill.when(model.hf):
            for place in _places(fill, _LAYER in fill.mcore, _EXPERT in fill.like, model, sizes):
                yield _fill_binding(fill, place)


def _rule_binding(rule: Rule, place: _Place) -> Binding:
    parts = tuple(place.part(tensor) for tensor in rule.hf)
    target, stack = place.target(rule.mcore)
    permutation, row_blocks = None, ()
    if isinstance(rule.layout, Permuted):
        permutation = rule.layout.permutation(place.sizes)
        shape = tuple(permutation.shape[axis] for axis in permutation.axes)
    else:
        row_blocks = rule.layout.row_blocks(tuple(part.shape[0] for part in parts), place.sizes)
        shape = (sum(block.rows for block in row_blocks), *parts[0].shape[1:])
    return Binding(
        parts=parts,
        target=target,
        stack=stack,
        shape=shape if rule.shape is None else sized(rule.shape, place.sizes),
        row_blocks=row_blocks,
        permutation=permutation,
        like=parts[0].source.name,
        padded=rule.hf[0].shape[0] == "vocab",
    )


def _fill_binding(fill: Fill, place: _Place) -> Binding:
    target, stack = place.target(fill.mcore)
    return Binding(
        parts=(),
        target=target,
        stack=stack,
        shape=sized(fill.shape, place.sizes),
        row_blocks=(),
        like=fill.like.replace(_LAYER, str(place.hf_layer)).replace(_EXPERT, str(place.expert)),
        padded=False,
        why_filled=fill.why,
    )


def _check_sources(family: Family, bound: Iterable[Binding]) -> None:
    """Every row of every HF tensor has exactly one place."""
    shapes: dict[Address, tuple[int, ...]] = {}
    used: defaultdict[Address, list[tuple[int, int]]] = defaultdict(list)
    slices: defaultdict[str, set[tuple[int, ...]]] = defaultdict(set)
    stacks: dict[str, tuple[int, ...]] = {}
    for binding in bound:
        for number, part in enumerate(binding.parts):
            if shapes.setdefault(part.source, part.shape) != part.shape:
                raise _broken(family, str(part.source), f"shapes {shapes[part.source]} and {part.shape}", "one shape")
            used[part.source] += _rows_used(binding, number, part)
            slices[part.source.name].add(part.source.index)
            stacks[part.source.name] = part.stack
    for source, ranges in used.items():
        end = 0
        for start, rows in sorted(ranges):
            if start != end:
                break
            end += rows
        if end != shapes[source][0] or sum(rows for _, rows in ranges) != end:
            raise _broken(family, str(source), f"rows {sorted(ranges)}", f"each of {shapes[source][0]} rows once")
    for name, indices in slices.items():
        if len(indices) != prod(stacks[name]):
            raise _broken(family, name, f"{len(indices)} slices", f"{prod(stacks[name])}")


def _rows_used(binding: Binding, number: int, part: Part) -> list[tuple[int, int]]:
    if binding.permutation:
        whole = prod(binding.permutation.shape) == prod(part.shape) and len(binding.parts) == 1
        return [(0, part.shape[0])] if whole else []
    return [(block.start, block.rows) for block in binding.row_blocks if block.part == number]


def _check_targets(family: Family, bound: Iterable[Binding]) -> None:
    """Every Megatron tensor, and every slice of a stack, is made once."""
    made: defaultdict[str, list[Binding]] = defaultdict(list)
    for binding in bound:
        made[binding.target.name].append(binding)
    for name, of_name in made.items():
        indices = {binding.target.index for binding in of_name}
        if len(of_name) != len(indices) or len(indices) != prod(of_name[0].stack):
            raise _broken(family, name, f"made {len(of_name)} times", f"each of {prod(of_name[0].stack)} slices once")
        if len({(binding.stack, binding.shape) for binding in of_name}) > 1:
            raise _broken(family, name, "slices of several shapes", "one shape")


def _broken(family: Family, thing: str, found: str, expected: str) -> InternalError:
    return InternalError(
        "internal",
        f"{family.name}: rules for {thing!r}",
        found=found,
        expected=expected,
        next_step=f"Mend the rules of {family.page}.",
    )
