"""A base with adapters folded in, as a source: what they touch is computed, all else is the base's own bytes."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from zlib import crc32

from ..checkpoints.cast_source import CastSource
from ..checkpoints.dtypes import BY_SAFETENSORS
from ..checkpoints.extents import Computed, Extent, Operand, StoredTensor
from ..checkpoints.operations import Combination, LowRankUpdate
from ..checkpoints.source import Source
from ..jobs.errors import BadInputError
from ..mapping.blocks import Address
from .base_tensors import BaseTensors
from .matching import Matched, Pair
from .peft_folder import PeftFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Folding:
    """How several adapters, and their sums, come together."""

    combination: Combination | None
    stepwise: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The same tensors twice: as exact as they are known, and as they are to be written."""

    precise: Source
    plain: Source
    known: BaseTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedSource:
    """A Source. Each touched tensor is rounded once, to the dtype that it is written in."""

    base: Base
    folding: Folding
    tensors: Mapping[str, StoredTensor]
    updates: Mapping[Address, tuple[Pair, ...]]
    touched: frozenset[str]
    """Names of what is computed."""
    replaced: Mapping[str, tuple[PeftFolder, str]]
    repeated: tuple[tuple[str, PeftFolder, str], ...]
    """Replacements that several adapters bring, which must be the same: (base tensor, adapter, its tensor)."""
    adapters: tuple[Path, ...]
    """Their files."""
    untied: bool
    """The output layer is a tensor of its own now."""
    followers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Copies of changed tensors, and of which: what is one parameter to the model stays so."""

    @classmethod
    def of(cls, base: Base, adapters: Collection[tuple[Matched, float]], folding: Folding) -> "MergedSource":
        """Adapters with their weights, in order. BadInputError where they cannot be put together."""
        updates = _collected(adapters)
        _refuse_unmixable(updates, adapters, folding)
        replaced, repeated = _replacements(adapters)
        names = {address.name for address in updates}
        untied = base.known.tied is not None and any(name in names or name in replaced for name in base.known.tied)
        if untied:
            _refuse_tied_training(adapters)
        return cls(
            base=base,
            folding=folding,
            tensors=_tensors(base, untied=untied),
            updates=updates,
            touched=frozenset(names),
            replaced=replaced,
            repeated=repeated,
            adapters=tuple(path for matched, _ in adapters for path in matched.folder.files),
            untied=untied,
        )

    def with_followers(self, copies: Mapping[str, str]) -> "MergedSource":
        """The same where these tensors of the base, each the same as another, change with it."""
        return replace(self, followers=copies)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        read = self.base.plain.files_of({self.origin(name) for name in names})
        return (*read, *self.adapters)

    def whole(self, name: str) -> tuple[Extent, ...]:
        name = self.followers.get(name, name)
        if name in self.touched or name in self.replaced:
            shape = self.tensors[name].shape
            return self.rows(name, (), 0, shape[0])
        return self.base.plain.whole(self.origin(name))

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        name = self.followers.get(name, name)
        if name in self.touched:
            return self._touched(name, index, start, rows)
        if name in self.replaced:
            folder, own = self.replaced[name]
            return _as(folder, own, self.tensors[name]).rows(own, index, start, rows)
        return self.rows_before(name, index, start, rows)

    def rows_before(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The same rows of the base, in the same dtype."""
        return self.base.plain.rows(self.origin(name), index, start, rows)

    def update(self, address: Address) -> Computed:
        """All rows of a touched tensor, or slice."""
        return self._computed(address, 0, self.tensors[address.name].shape[len(address.index)])

    def _touched(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        if Address(name, index) in self.updates:
            return (self._computed(Address(name, index), start, rows),)
        return tuple(self.update(Address(name, (number,))) for number in range(start, start + rows))

    def _computed(self, address: Address, start: int, rows: int) -> Computed:
        written = self.tensors[address.name]
        height, *width = written.shape[len(address.index) :]
        pairs, columns = self.updates[address], prod(width)
        source, extents = self._beneath(address, height)
        operation = LowRankUpdate(
            height,
            columns,
            source.dtype,
            written.dtype,
            tuple(pair.factors for pair in pairs),
            self.folding.stepwise,
            self._combination(address),
        )
        operands = (
            Operand(extents, columns * source.item_bytes),
            *(operand for pair in pairs for operand in pair.operands),
        )
        return Computed(operation, operands, start, rows, columns * written.item_bytes)

    def _beneath(self, address: Address, height: int) -> tuple[StoredTensor, tuple[Extent, ...]]:
        """What the factors are added to: the base's tensor, or one that an adapter put in its place."""
        if address.name in self.replaced:
            folder, own = self.replaced[address.name]
            return folder.tensor(own), folder.weights.rows(own, address.index, 0, height)
        origin = self.origin(address.name)
        return self.base.precise.tensors[origin], self.base.precise.rows(origin, address.index, 0, height)

    def _combination(self, address: Address) -> Combination | None:
        how = self.folding.combination
        return None if how is None else replace(how, seed=(*how.seed, crc32(str(address).encode())))

    def origin(self, name: str) -> str:
        """The base's tensor that it is made from: an output layer may have been tied to another."""
        tied = self.base.known.tied
        return tied[1] if tied is not None and name == tied[0] and name not in self.base.plain.tensors else name


def _tensors(base: Base, *, untied: bool) -> Mapping[str, StoredTensor]:
    tensors = base.plain.tensors
    if not untied or base.known.tied is None or base.known.tied[0] in tensors:
        return tensors
    head, embedding = base.known.tied
    return {**tensors, head: tensors[embedding]}


def _collected(adapters: Collection[tuple[Matched, float]]) -> Mapping[Address, tuple[Pair, ...]]:
    pairs: defaultdict[Address, list[Pair]] = defaultdict(list)
    for matched, weight in adapters:
        for address, pair in (*matched.pairs.items(), *matched.biases.items()):
            pairs[address].append(replace(pair, factors=replace(pair.factors, scale=pair.factors.scale * weight)))
    return {address: tuple(found) for address, found in pairs.items()}


def _replacements(
    adapters: Collection[tuple[Matched, float]],
) -> tuple[dict[str, tuple[PeftFolder, str]], tuple[tuple[str, PeftFolder, str], ...]]:
    """By tensor the first that replaces it; and all others."""
    replaced: dict[str, tuple[PeftFolder, str]] = {}
    repeated: list[tuple[str, PeftFolder, str]] = []
    for matched, _ in adapters:
        for name, own in matched.replaced.items():
            if replaced.setdefault(name, (matched.folder, own)) != (matched.folder, own):
                repeated.append((name, matched.folder, own))
    return replaced, tuple(repeated)


def _refuse_unmixable(
    updates: Mapping[Address, tuple[Pair, ...]], adapters: Collection[tuple[Matched, float]], folding: Folding
) -> None:
    for matched, weight in adapters:
        config, path = matched.folder.config, matched.folder.path
        if config.use_dora and (weight != 1 or folding.combination is not None):
            raise _unmixable(f"adapter {path}", "DoRA with a weight, or combined: a magnitude is no sum")
        if (config.lora_bias or config.target_parameters) and folding.combination is not None:
            raise _unmixable(f"adapter {path}", "lora_bias or target_parameters, which PEFT does not combine")
    if folding.combination is not None and folding.combination.method not in ("cat", "svd"):
        for address, pairs in updates.items():
            if len({pair.factors.rank for pair in pairs}) > 1:
                ranks = ", ".join(str(pair.factors.rank) for pair in pairs)
                raise _unmixable(
                    f"base tensor '{address}'", f"factors of ranks {ranks}, which {folding.combination.method} adds"
                )


def _refuse_tied_training(adapters: Collection[tuple[Matched, float]]) -> None:
    for matched, _ in adapters:
        if matched.folder.config.ensure_weight_tying:
            raise BadInputError(
                "unsupported_config_value",
                f"adapter {matched.folder.path}",
                found="ensure_weight_tying, of an output layer that is tied to the embedding",
                expected="an adapter that leaves both as they are, or trains one of them",
                next_step="Merge it with PEFT, or train it without ensure_weight_tying.",
            )


def _unmixable(thing: str, found: str) -> BadInputError:
    return BadInputError(
        "unsupported_config_value",
        thing,
        found=found,
        expected="adapters that have a sum",
        next_step="Merge it alone, or one after the other with combine `sequential`.",
    )


def _as(folder: PeftFolder, own: str, written: StoredTensor) -> Source:
    """An adapter's own tensor in the dtype that is written."""
    item_bytes = BY_SAFETENSORS[written.dtype].item_bytes
    cast = StoredTensor(dtype=written.dtype, shape=folder.tensor(own).shape, item_bytes=item_bytes)
    return CastSource(folder.weights, written.dtype, {own: cast})
