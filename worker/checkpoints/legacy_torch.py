"""Megatron's older `torch` checkpoints: the ranks' shards as boxes of the global tensors that `torch_dist` has."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from .dtypes import BY_SAFETENSORS
from .extents import Extent, StoredTensor
from .legacy_cuts import cut_of
from .legacy_ranks import Rank, read_ranks
from .refusal import bad_checkpoint
from .tiling import Tiling
from .torch_archive import FoundTensor

_LAYER = re.compile(r"(?P<block>decoder)\.layers\.(?P<layer>\d+)\.(?P<rest>.+)")
_EXPERT = re.compile(
    r"(?P<before>.*mlp\.experts\.)(?:local_experts\.(\d+)\.(linear_fc[12]\.\w+)|(linear_fc[12]\.[a-z]+)(\d+))"
)
_FUSED_NORMS = (
    ("input_layernorm.", "self_attention.linear_qkv."),
    ("pre_mlp_layernorm.", "mlp.linear_fc1."),
)
"""Norms of Megatron's local layers, and the linear layer whose norm Transformer Engine and checkpoints call them."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A box of a global tensor in a rank's file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    offset: int

    def within(self, index: tuple[int, ...]) -> "_Placed":
        """The same box as a part of slice `index` of a stack."""
        return replace(self, offsets=(*index, *self.offsets), sizes=((1,) * len(index)) + self.sizes)


@dataclass(frozen=True, slots=True, order=True)
class _Key:
    """A parameter of the whole model: its name without layer and expert, and those."""

    name: str
    layer: int | None
    expert: int | None

    @property
    def index(self) -> tuple[int, ...]:
        return tuple(number for number in (self.layer, self.expert) if number is not None)


@dataclass(frozen=True, slots=True)
class _Shard:
    """What one rank has of a parameter."""

    rank: Rank
    found: FoundTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """A parameter put together from its shards."""

    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[_Placed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyTorchFolder:
    """The global tensors of an iteration folder, by the names that a `torch_dist` checkpoint of the model has."""

    folder: Path
    tilings: Mapping[str, Tiling[_Placed]]

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor, by name."""
        return {name: tiling.tensor for name, tiling in self.tilings.items()}

    def whole(self, name: str) -> tuple[Extent, ...]:
        """All bytes of a tensor, in order."""
        shape = self.tensors[name].shape
        return self.rows(name, (), 0, shape[0] if shape else 1)

    def rows(self, name: str, index: tuple[int, ...], start: int, rows: int) -> tuple[Extent, ...]:
        """The bytes of `rows` rows of a tensor, or of slice `index` of a stack, in order."""
        return self.tilings[name].rows(index, start, rows)

    def files_of(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The ranks' files in which shards of these tensors lie."""
        return tuple(sorted({box.path for name in names for box in self.tilings[name].boxes}))

    def without(self, name: str) -> "LegacyTorchFolder":
        """The same, but for one tensor."""
        return replace(self, tilings={key: tiling for key, tiling in self.tilings.items() if key != name})


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyShards:
    """The ranks of an iteration folder. Pickles are read inert: nothing in them runs."""

    folder: Path
    ranks: tuple[Rank, ...]

    @classmethod
    def open(cls, folder: Path) -> "LegacyShards":
        """Read every rank's index. BadInputError where a rank is missing or broken."""
        return cls(folder=folder, ranks=read_ranks(folder))

    @property
    def args(self) -> Mapping[str, object]:
        """Megatron's command line, as its first rank has it."""
        return self.ranks[0].args

    def merged(self, *, stacked: bool) -> LegacyTorchFolder:
        """The global tensors; `stacked`: one for all decoder layers, as Megatron keeps those that are alike."""
        shards = self._shards()
        wholes = {key: self._whole(key, shards) for key in shards}
        stacks: defaultdict[str, dict[_Key, _Whole]] = defaultdict(dict)
        for key in sorted(wholes, key=lambda key: (key.name, key.index)):
            stacks[_stack_name(key, stacked)][key] = wholes[key]
        return LegacyTorchFolder(
            folder=self.folder,
            tilings={name: self._tiling(name, of_name, stacked) for name, of_name in stacks.items()},
        )

    def _shards(self) -> dict[_Key, list[_Shard]]:
        shards: defaultdict[_Key, list[_Shard]] = defaultdict(list)
        for rank, first_layer, tensors in self._stages():
            for name, found in tensors.items():
                shards[_key(_trainers_name(name, tensors), first_layer)].append(_Shard(rank, found))
        return shards

    def _stages(self) -> Iterator[tuple[Rank, int, Mapping[str, FoundTensor]]]:
        """Every rank's (virtual) stages with the number of their first layer.

        A model passes through virtual stage 0 of all ranks, then through virtual stage 1 of all, and so on.
        """
        pp_size, virtual = self.ranks[-1].pp_rank + 1, len(self.ranks[0].stages)
        first_layer = 0
        for number in range(virtual):
            for pp_rank in range(pp_size):
                of_stage = [rank for rank in self.ranks if rank.pp_rank == pp_rank]
                layers = [_layer_count(rank.stages[number]) for rank in of_stage]
                if len(set(layers)) > 1:
                    raise bad_checkpoint(self.folder, f"ranks of one stage with {layers} layers", "as many on each")
                yield from ((rank, first_layer, rank.stages[number]) for rank in of_stage)
                first_layer += layers[0]

    def _whole(self, key: _Key, shards: Mapping[_Key, list[_Shard]]) -> _Whole:
        of_key = shards[key]
        tp_size = self.ranks[-1].tp_rank + 1
        if [shard.rank.tp_rank for shard in of_key] != list(range(tp_size)):
            names = ", ".join(shard.rank.path.parent.name for shard in of_key)
            raise bad_checkpoint(self.folder, f"{_label(key)} in {names}", f"once on each of {tp_size} tensor ranks")
        cut = "whole" if tp_size == 1 else cut_of(key.name)
        match cut:
            case "whole":
                return _side_by_side(key, of_key[:1], 0)
            case "rows":
                gated = _is_gated(key, shards)
                return _interleaved(key, of_key) if gated else _side_by_side(key, of_key, 0)
            case "columns":
                return _side_by_side(key, of_key, 1)
            case None:
                expected = "a parameter whose tensor-parallel cut is known"
                raise bad_checkpoint(self.folder, f"tensor {_label(key)} on {tp_size} tensor ranks", expected)

    def _tiling(self, name: str, wholes: Mapping[_Key, _Whole], stacked: bool) -> Tiling[_Placed]:
        first = next(iter(wholes.values()))
        indices = {key: key.index if stacked or key.layer is None else key.index[1:] for key in wholes}
        axes = tuple(max(numbers) + 1 for numbers in zip(*indices.values(), strict=True))
        if len(wholes) != prod(axes) or any(
            (whole.dtype, whole.shape) != (first.dtype, first.shape) for whole in wholes.values()
        ):
            raise bad_checkpoint(self.folder, f"layers or experts that have no like {name!r}", "the same in all")
        item_bytes = BY_SAFETENSORS[first.dtype].item_bytes
        return Tiling(
            name=name,
            origin=self.folder,
            tensor=StoredTensor(dtype=first.dtype, shape=(*axes, *first.shape), item_bytes=item_bytes),
            boxes=[box.within(indices[key]) for key, whole in wholes.items() for box in whole.boxes],
            locate=lambda box: (box.path, box.offset),
        )


def _layer_count(tensors: Iterable[str]) -> int:
    numbers = {int(match["layer"]) for name in tensors if (match := _LAYER.fullmatch(name))}
    return max(numbers) + 1 if numbers else 0


def _trainers_name(name: str, names: Mapping[str, object]) -> str:
    """The name that checkpoints have, whichever layers the trainer used."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    layer = name.removesuffix(match["rest"])
    for norm, linear in _FUSED_NORMS:
        if match["rest"].startswith(norm) and f"{layer}{linear}weight" in names:
            return f"{layer}{linear}layer_norm_{match['rest'].removeprefix(norm)}"
    return name


def _key(name: str, first_layer: int) -> _Key:
    layer = expert = None
    if match := _LAYER.fullmatch(name):
        name, layer = f"{match['block']}.layers.{match['rest']}", first_layer + int(match["layer"])
    if match := _EXPERT.fullmatch(name):
        name = f"{match['before']}experts.{match[3] or match[4]}"
        expert = int(match[2] or match[5])
    return _Key(name, layer, expert)


def _stack_name(key: _Key, stacked: bool) -> str:
    if stacked or key.layer is None:
        return key.name
    return key.name.replace("layers.", f"layers.{key.layer}.", 1)


def _is_gated(key: _Key, shards: Mapping[_Key, list[_Shard]]) -> bool:
    """Whether fc1 holds gate and up projection: it has twice the rows that fc2 has columns."""
    before, fc1, _ = key.name.rpartition("linear_fc1.")
    after = shards.get(replace(key, name=f"{before}linear_fc2.weight")) if fc1 else None
    return bool(after) and shards[key][0].found.shape[0] == 2 * after[0].found.shape[1]


def _side_by_side(key: _Key, shards: list[_Shard], axis: int) -> _Whole:
    """The ranks' shards, one after the other along an axis."""
    boxes: list[_Placed] = []
    reached = 0
    for shard in shards:
        shape = _shape(key, shards, shard, axis)
        offsets = tuple(reached if number == axis else 0 for number in range(len(shape)))
        boxes.append(_Placed(offsets, shape, shard.rank.path, shard.found.offset))
        reached += shape[axis]
    first = shards[0].found
    shape = tuple(reached if number == axis else size for number, size in enumerate(first.shape))
    return _Whole(dtype=first.dtype, shape=shape, boxes=tuple(boxes))


def _interleaved(key: _Key, shards: list[_Shard]) -> _Whole:
    """Each rank has [gate; up]; the whole is [gate.. gate; up.. up]."""
    first = shards[0].found
    item_bytes = BY_SAFETENSORS[first.dtype].item_bytes
    rows = sum(shard.found.shape[0] for shard in shards) // 2
    boxes: list[_Placed] = []
    reached = 0
    for shard in shards:
        half, *others = (_shape(key, shards, shard, 0)[0] // 2, *shard.found.shape[1:])
        rest = tuple(others)
        half_bytes = half * prod(rest) * item_bytes
        for number, start in enumerate((reached, rows + reached)):
            offset = shard.found.offset + number * half_bytes
            boxes.append(_Placed((start, *(0 for _ in rest)), (half, *rest), shard.rank.path, offset))
        reached += half
    return _Whole(dtype=first.dtype, shape=(2 * rows, *first.shape[1:]), boxes=tuple(boxes))


def _shape(key: _Key, shards: list[_Shard], shard: _Shard, axis: int) -> tuple[int, ...]:
    """The shard's shape, which the others share but for `axis`."""
    first, found = shards[0].found, shard.found
    others = [tuple(size for number, size in enumerate(tensor.shape) if number != axis) for tensor in (first, found)]
    if len(found.shape) <= axis or first.dtype != found.dtype or others[0] != others[1]:
        found_text = f"tensor {_label(key)} as {found.dtype} {list(found.shape)}"
        raise bad_checkpoint(shard.rank.path, found_text, f"a share like {first.dtype} {list(first.shape)}")
    return found.shape


def _label(key: _Key) -> str:
    return f"{key.name!r}{list(key.index) if key.index else ''}"
