"""PEFT's factors as a Megatron adapter: shared, side by side in one pair of a larger rank, or one pair a component."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.extents import Computed, Extent, Item, Operand, Permuted, Run, Zeros
from ..checkpoints.operations import Cast
from ..jobs.errors import BadInputError
from ..mapping.blocks import Address, Block, Left, Plan, Task
from .linears import Linear, by_module
from .matching import Matched, Pair
from .mcore_config import Kind, McoreAdapterConfig
from .mcore_folder import LINEAR_IN, LINEAR_OUT, MAGNITUDE, adapter_name
from .peft_folder import PeftFolder

Same = Callable[[tuple[Extent, ...], tuple[Extent, ...]], bool]
"""Whether two lists of extents hold the same bytes."""

Form = Literal["auto", "canonical", "fused"]
Pairs = tuple[Pair | None, ...]
"""Of each piece of a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McoreTensors:
    """What is written, and the config that says what it means."""

    plan: Plan
    items: tuple[Item, ...]
    config: McoreAdapterConfig


def mcore_tensors(matched: Matched, layers: tuple[Linear, ...], form: Form, same: Same, dropout: float) -> McoreTensors:
    """BadInputError where Megatron has no place for what PEFT adapts."""
    pairs = _sorted_pairs(matched, layers)
    adapted = {module: of for module, of in by_module(layers).items() if any(any(pairs[one.address]) for one in of)}
    fused = _Fused(pairs, same)
    kind = _kind(matched.folder, form, adapted, fused)
    sites = [site for module, of in adapted.items() for site in _sites(module, of, pairs, kind, fused)]
    found = [pair for of in pairs.values() for pair in of if pair is not None]
    scale = Counter(pair.factors.scale for pair in found).most_common(1)[0][0]
    dim = max(site.rank for site in sites)
    writing = _Writing(dim=dim, scale=scale, dtype=_dtype(found, scale))
    made = [made for site in sites for made in writing.tensors(site)]
    if kind == "dora":
        _refuse_holes(matched.folder, sites)
    return McoreTensors(
        plan=Plan(
            tasks=tuple(task for task, _ in made),
            dropped=tuple(_beside(matched)),
            filled=tuple(dict.fromkeys(_filled(sites))),
        ),
        items=tuple(item for _, item in made),
        config=McoreAdapterConfig(
            type=kind, dim=dim, alpha=scale * dim, dropout=dropout, target_modules=_targets(layers, sites)
        ),
    )


def _sorted_pairs(matched: Matched, layers: tuple[Linear, ...]) -> Mapping[Address, Pairs]:
    beside = {left.name for left in _beside(matched)}
    whole = [name for name, own in matched.replaced.items() if own not in beside]
    for name in (*whole, *(str(address) for address in matched.biases)):
        raise _homeless(matched.folder, name, "a tensor of its own for it (modules_to_save, bias or lora_bias)")
    left = dict(matched.pairs)
    found = {
        layer.address: tuple(left.pop(Address(f"{piece.module}.weight"), None) for piece in layer.pieces)
        for layer in layers
    }
    for address in left:
        raise _homeless(matched.folder, str(address), "factors for it")
    return found


def _beside(matched: Matched) -> Iterator[Left]:
    """An output layer's own weight, frozen under its factors, which PEFT saves along with them."""
    for name, own in matched.replaced.items():
        if own.endswith(".base_layer.weight") and Address(name) in matched.pairs:
            yield Left(name=own, why="the base's own, which PEFT saves beside its factors")


@dataclass(frozen=True, slots=True)
class _Fused:
    """How the pieces of a fused layer stand to each other."""

    pairs: Mapping[Address, Pairs]
    same: Same

    def shared(self, layers: tuple[Linear, ...]) -> bool:
        """Whether in each of these layers that is adapted, all pieces have one A, and one scale."""
        return all(self._shares(self.pairs[layer.address]) for layer in layers if any(self.pairs[layer.address]))

    def _shares(self, pairs: Pairs) -> bool:
        first = pairs[0]
        if first is None:
            return False
        for other in pairs[1:]:
            if other is None or other.factors.scale != first.factors.scale or other.factors.rank != first.factors.rank:
                return False
            if other.operands[0] != first.operands[0] and not self.same(_whole(first), _whole(other)):
                return False
        return True


def _whole(pair: Pair) -> tuple[Extent, ...]:
    """A's bytes."""
    factors, operand = pair.factors, pair.operands[0]
    return _rows(operand, factors.a_dtype, operand.row_bytes // factors.rank, 0, factors.rank, factors.a_dtype, 1.0)


def _kind(folder: PeftFolder, form: Form, adapted: Mapping[str, tuple[Linear, ...]], fused: _Fused) -> Kind:
    if folder.config.use_dora:
        if form == "canonical":
            raise BadInputError(
                "unsupported_config_value",
                f"adapter {folder.path}: use_dora",
                found="DoRA, to be written as canonical LoRA",
                expected="a form that Megatron-Bridge has: its DoRA adapts fused layers whole",
                next_step="Leave out `--form`, or write `--form fused`.",
            )
        return "dora"
    split = [of for of in adapted.values() if of[0].components]
    if form == "canonical" or (form == "auto" and not all(map(fused.shared, split))):
        return "canonical_lora"
    return "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """One pair of tensors, `module.adapter[.component]`, slice by slice."""

    module: str
    component: str
    slices: tuple["_Slice", ...]
    rank: int

    @property
    def layers(self) -> tuple[Linear, ...]:
        return tuple(one.layer for one in self.slices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """The pieces that come into one slice, and where among its rank each one's factors begin."""

    layer: Linear
    pieces: tuple[int, ...]
    pairs: Pairs
    starts: tuple[int, ...]
    """Of each piece; all 0 where A is shared."""
    shared: bool
    rank: int

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(place among the pieces, first row, rows), in the order of this slice's rows."""
        for block in self.layer.row_blocks:
            if block.part in self.pieces:
                yield self.pieces.index(block.part), block.start, block.rows


def _sites(
    module: str, layers: tuple[Linear, ...], pairs: Mapping[Address, Pairs], kind: Kind, fused: _Fused
) -> Iterator[_Site]:
    components = layers[0].components if kind == "canonical_lora" else ()
    if not components:
        shared = len(layers[0].pieces) > 1 and fused.shared(layers)
        everything = tuple(range(len(layers[0].pieces)))
        yield _site(module, "", tuple(_slice(one, everything, pairs[one.address], shared=shared) for one in layers))
    for number, component in enumerate(components):
        if any(pairs[one.address][number] for one in layers):
            of = tuple(_slice(one, (number,), (pairs[one.address][number],), shared=False) for one in layers)
            yield _site(module, component, of)


def _site(module: str, component: str, slices: tuple[_Slice, ...]) -> _Site:
    return _Site(module=module, component=component, slices=slices, rank=max(one.rank for one in slices))


def _slice(layer: Linear, pieces: tuple[int, ...], pairs: Pairs, *, shared: bool) -> _Slice:
    starts: list[int] = []
    rank = 0
    for pair in pairs:
        starts.append(0 if shared else rank)
        own = 0 if pair is None else pair.factors.rank
        rank = max(rank, own) if shared else rank + own
    return _Slice(layer=layer, pieces=pieces, pairs=pairs, starts=tuple(starts), shared=shared, rank=rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writing:
    """What all tensors have in common: Megatron knows one rank and one alpha."""

    dim: int
    scale: float
    dtype: str

    @property
    def item_bytes(self) -> int:
        return BY_SAFETENSORS[self.dtype].item_bytes

    def tensors(self, site: _Site) -> Iterator[tuple[Task, Item]]:
        """A, B and, where there are any, magnitudes: all slices of each."""
        for one in site.slices:
            yield self._tensor(site, one, LINEAR_IN, (self.dim, one.layer.columns), self._a(one))
        rows = {one.layer.address: sum(rows for *_, rows in one.blocks()) for one in site.slices}
        for one in site.slices:
            yield self._tensor(site, one, LINEAR_OUT, (rows[one.layer.address], self.dim), self._b(one))
        if any(pair is not None and pair.factors.magnitude for one in site.slices for pair in one.pairs):
            for one in site.slices:
                yield self._tensor(site, one, MAGNITUDE, (rows[one.layer.address],), self._magnitude(one))

    def _tensor(
        self, site: _Site, one: _Slice, part: str, shape: tuple[int, ...], extents: Iterator[Extent]
    ) -> tuple[Task, Item]:
        name, layer = adapter_name(site.module, site.component, part), one.layer
        task = Task(
            target=Address(name, layer.index),
            dtype=self.dtype,
            shape=shape,
            stack=layer.stack,
            blocks=tuple(_origins(one, part)),
        )
        item = Item(
            name=name,
            index=layer.index,
            stack=layer.stack,
            dtype=self.dtype,
            shape=shape,
            extents=tuple(extent for extent in extents if extent.length),
        )
        return task, item

    def _a(self, one: _Slice) -> Iterator[Extent]:
        """The pieces' A, one under the other, then zeros."""
        columns = one.layer.columns
        for pair in one.pairs[:1] if one.shared else one.pairs:
            if pair is not None:
                bytes_each = columns * BY_SAFETENSORS[pair.factors.a_dtype].item_bytes
                yield from _rows(
                    pair.operands[0], pair.factors.a_dtype, bytes_each, 0, pair.factors.rank, self.dtype, 1.0
                )
        yield Zeros((self.dim - one.rank) * columns * self.item_bytes)

    def _b(self, one: _Slice) -> Iterator[Extent]:
        """Each row block's B, in the columns of its piece; zeros in all others."""
        for place, start, rows in one.blocks():
            pair = one.pairs[place]
            if pair is None:
                yield Zeros(rows * self.dim * self.item_bytes)
                continue
            factors = pair.factors
            bytes_each = factors.rank * BY_SAFETENSORS[factors.b_dtype].item_bytes
            factor = factors.scale / self.scale
            own = _rows(pair.operands[1], factors.b_dtype, bytes_each, start, rows, self.dtype, factor)
            yield from self._in_columns(own, rows, factors.rank, one.starts[place])

    def _in_columns(self, own: tuple[Extent, ...], rows: int, rank: int, start: int) -> tuple[Extent, ...]:
        if rank == self.dim:
            return own
        turned = Permuted(own, (rows, rank), (1, 0), self.item_bytes)
        before, after = start, self.dim - start - rank
        stacked = (Zeros(before * rows * self.item_bytes), turned, Zeros(after * rows * self.item_bytes))
        kept = tuple(extent for extent in stacked if extent.length)
        return (Permuted(kept, (self.dim, rows), (1, 0), self.item_bytes),)

    def _magnitude(self, one: _Slice) -> Iterator[Extent]:
        for place, start, rows in one.blocks():
            pair = one.pairs[place]
            if pair is not None and pair.factors.magnitude:
                bytes_each = BY_SAFETENSORS[pair.factors.magnitude].item_bytes
                yield from _rows(pair.operands[2], pair.factors.magnitude, bytes_each, start, rows, self.dtype, 1.0)


def _rows(
    operand: Operand, stored: str, bytes_each: int, start: int, rows: int, dtype: str, factor: float
) -> tuple[Extent, ...]:
    """Rows of what an operand holds, in another dtype or times a factor where that is asked."""
    if stored == dtype and factor == 1 and len(operand.extents) == 1 and isinstance(run := operand.extents[0], Run):
        return (Run(run.path, run.offset + operand.skip + start * bytes_each, rows * bytes_each),)
    written = bytes_each // BY_SAFETENSORS[stored].item_bytes * BY_SAFETENSORS[dtype].item_bytes
    by_row = Operand(operand.extents, bytes_each, 1, operand.skip)
    return (Computed(Cast(stored, dtype, factor), (by_row,), start, rows, written),)


def _origins(one: _Slice, part: str) -> Iterator[Block]:
    """For whoever reads the plan."""
    names = {LINEAR_IN: "lora_A", LINEAR_OUT: "lora_B", MAGNITUDE: "lora_magnitude_vector"}
    if part == LINEAR_IN:
        for place, pair in enumerate(one.pairs[:1] if one.shared else one.pairs):
            if pair is not None:
                yield Block(Address(f"{_module(one, place)}.{names[part]}"), 0, pair.factors.rank)
        return
    for place, start, rows in one.blocks():
        if one.pairs[place] is not None:
            yield Block(Address(f"{_module(one, place)}.{names[part]}"), start, rows)


def _module(one: _Slice, place: int) -> str:
    return one.layer.pieces[one.pieces[place]].module


def _dtype(pairs: list[Pair], scale: float) -> str:
    """The one that all tensors have; fp32 where they have several, or one scale has to do for several."""
    factors = [pair.factors for pair in pairs]
    dtypes = {dtype for one in factors for dtype in (one.a_dtype, one.b_dtype, one.magnitude) if dtype}
    if len(dtypes) > 1 or any(one.scale != scale for one in factors):
        return "F32"
    return dtypes.pop()


def _filled(sites: list[_Site]) -> Iterator[Left]:
    for site in sites:
        for part in (LINEAR_IN, LINEAR_OUT):
            if any(not any(one.pairs) for one in site.slices):
                why = "zeros in layers that PEFT does not adapt: Megatron has one tensor for all layers"
                yield Left(name=adapter_name(site.module, site.component, part), why=why)


def _refuse_holes(folder: PeftFolder, sites: list[_Site]) -> None:
    for site in sites:
        for one in site.slices:
            if not all(pair is not None for pair in one.pairs):
                missing = [_module(one, place) for place, pair in enumerate(one.pairs) if pair is None]
                raise _homeless(folder, str(one.layer.address), f"DoRA without {', '.join(missing)}, which it fuses")


def _targets(layers: tuple[Linear, ...], sites: list[_Site]) -> tuple[str, ...]:
    """Megatron's own names where all layers of that name are adapted; else patterns of those that are."""
    components: dict[str, list[str]] = {}
    for site in sites:
        components.setdefault(site.module, []).append(site.component)
    found: set[str] = set()
    for site in sites:
        for layer in site.layers:
            prefix = _pattern(layer, layers, components)
            for component in components[site.module] if layer.components else [""]:
                own = {"": layer.leaf, "gate": "linear_fc1_gate", "up": "linear_fc1_up"}
                found.add(prefix + own.get(component, f"linear_{component}"))
            whole = layer.is_expert and layer.leaf == "linear_fc1" and not layer.components
            if whole and any(any(of) for of in components.values()):
                found.discard(prefix + layer.leaf)  # canonical LoRA knows no linear_fc1, gated or not
                found |= {f"{prefix}linear_fc1_gate", f"{prefix}linear_fc1_up"}
    return tuple(sorted(found))


def _pattern(layer: Linear, layers: tuple[Linear, ...], adapted: Mapping[str, list[str]]) -> str:
    """What stands before the module's own name: nothing, `*.mlp.`, or `*.layers.3.mlp.`."""
    alike = [other for other in layers if other.leaf == layer.leaf and not other.is_mtp]
    if all(other.module in adapted for other in alike):
        return ""
    place = _place(layer)
    if all(other.module in adapted for other in alike if _place(other) == place):
        return f"*.{place}" if place else "*."
    return f"*.{layer.full_name.split('.', 1)[1].removesuffix(layer.leaf)}"


def _place(layer: Linear) -> str:
    return re.sub(r"^decoder\.layers\.\d+\.", "", layer.full_name).removesuffix(layer.leaf)


def _homeless(folder: PeftFolder, name: str, found: str) -> BadInputError:
    return BadInputError(
        "unknown_tensor",
        f"adapter {folder.path}: {name!r}",
        found=found,
        expected="factors of layers that are linear in Megatron, which has adapters for nothing else",
        next_step="Merge it into its base instead: `ferry merge ... --to megatron`.",
    )
