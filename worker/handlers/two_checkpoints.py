"""Two checkpoints of any formats, seen as the HF tensors that they hold, and where these differ."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.extents import Item, Span, TargetFile
from ..checkpoints.hf_folder import CONFIG
from ..checkpoints.identity import FileIdentity, identities, set_back
from ..checkpoints.safetensors_folder import whole_tensors
from ..checkpoints.watched import Seen, Watch
from ..engine.convert import items_of, refuse_unequal
from ..engine.copy import Segment
from ..jobs.errors import FerryError
from ..mapping.plan import plan_import
from .context import JobContext
from .hf_source import is_hf, open_hf, open_tensors
from .megatron_source import open_checkpoint
from .unverified import differs, some
from .whole_read import read_all


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """A checkpoint as the HF tensors that it holds."""

    place: Path
    items: Mapping[str, Item]
    left_out: frozenset[str]
    """HF tensors that a Megatron checkpoint of the same model does not hold."""
    sources: tuple[FileIdentity, ...]

    def form(self, name: str) -> str:
        """A tensor's dtype and shape."""
        return f"{self.items[name].dtype} {list(self.items[name].shape)}"

    def alone(self, other: "_Side") -> tuple[str, ...]:
        """Tensors that the other lacks."""
        return tuple(name for name in self.items if name not in other.items and name not in self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoCheckpoints:
    """Their headers and indexes; no tensor is read yet."""

    one: _Side
    other: _Side
    seen: Seen
    """All that was asked to open them."""

    @classmethod
    def open(
        cls, one: Path, other: Path, hf_config: Path | None, *, allow_pickle: bool, watch: Watch
    ) -> "TwoCheckpoints":
        """BadInputError where one of them is not understood; `hf_config` describes what is Megatron's.

        `watch` is over these paths.
        """
        mapped = not (is_hf(one) and is_hf(other))
        sides = [
            _hf_side(place, mapped=mapped) if is_hf(place) else _megatron_side(place, hf_config, allow_pickle)
            for place in (one, other)
        ]
        return cls(one=sides[0], other=sides[1], seen=watch.seen)

    @property
    def files(self) -> int:
        """Of both together."""
        return len({identity.path for side in (self.one, self.other) for identity in side.sources})

    @property
    def shared(self) -> tuple[str, ...]:
        """Tensors that both have."""
        return tuple(name for name in self.one.items if name in self.other.items)

    @property
    def alike(self) -> tuple[str, ...]:
        """Those of one dtype and shape."""
        return tuple(name for name in self.shared if self.one.form(name) == self.other.form(name))

    @property
    def unlike(self) -> tuple[str, ...]:
        """Tensors that differ in dtype or shape, or that one of them lacks."""
        alike = set(self.alike)
        others = (*self.one.alone(self.other), *self.other.alone(self.one))
        return (*(name for name in self.shared if name not in alike), *others)

    @property
    def bytes(self) -> int:
        """Of what is read to compare values."""
        return 2 * sum(self.one.items[name].nbytes for name in self.alike)

    def refuse_unlike(self) -> None:
        """BadInputError where the tensors' names, dtypes or shapes are not the same."""
        for side, other in ((self.one, self.other), (self.other, self.one)):
            if alone := side.alone(other):
                raise differs(
                    f"checkpoint {other.place}",
                    f"no tensor {some(alone)}, of which {side.place} has {len(alone)}",
                    "the same tensors in both",
                )
        for name in self.unlike:
            found = f"{self.one.form(name)} in {self.one.place} and {self.other.form(name)} in {self.other.place}"
            raise differs(f"HF tensor {name!r}", found, "one form")

    def other_values(self, context: JobContext) -> tuple[str, ...]:
        """Of tensors of one form, those with other bits. Reads them all."""
        names = self.alike
        sides = (self.one, self.other)
        targets = tuple(_as_file(str(number), side, names) for number, side in enumerate(sides))
        try:
            read = read_all(targets, (self.one.place, self.other.place), context, self.bytes)
        except FerryError:
            self.refuse_changed()
            raise
        for path in self.refuse_changed()[:1]:  # Links and rights that changed look like a time that was set back.
            if read_all(targets, (self.one.place, self.other.place), context, self.bytes) != read:
                raise set_back(path)
        ours, theirs = (_by_label(read.get(file.path, ())) for file in targets)
        return tuple(name for name in names if ours.get(name) != theirs.get(name))

    def refuse_changed(self) -> tuple[Path, ...]:
        """BadInputError where a file of either is not what it was; answers those that may have been written over."""
        return self.seen.refuse_changed()


def _hf_side(place: Path, *, mapped: bool) -> _Side:
    weights = open_tensors(place)
    left_out: frozenset[str] = frozenset()
    if mapped:
        plan = plan_import(open_hf(place).model, weights.tensors)
        refuse_unequal(plan.must_be_equal, weights)
        left_out = frozenset(left.name for left in plan.dropped)
    items = {
        name: Item(
            name=name,
            index=(),
            stack=(),
            dtype=tensor.dtype,
            shape=tensor.shape,
            extents=weights.whole(name),
        )
        for name, tensor in weights.tensors.items()
    }
    sources = identities((place / CONFIG, *weights.files_of(items)))
    return _Side(place=place, items=items, left_out=left_out, sources=sources)


def _megatron_side(place: Path, hf_config: Path | None, allow_pickle: bool) -> _Side:
    opened = open_checkpoint(place, hf_config, allow_pickle=allow_pickle)
    items = {item.name: item for item in whole_tensors(items_of(opened.plan, opened.weights))}
    return _Side(place=place, items=items, left_out=frozenset(), sources=identities(opened.files))


def _as_file(name: str, side: _Side, names: Iterable[str]) -> TargetFile:
    """The tensors one after the other, as if they were one file."""
    spans: list[Span] = []
    offset = 0
    for label in names:
        item = side.items[label]
        if item.nbytes:
            spans.append(Span(offset=offset, extents=item.extents, label=label))
            offset += item.nbytes
    return TargetFile(path=name, spans=tuple(spans))


def _by_label(segments: Iterable[Segment]) -> dict[str | None, str]:
    return {segment.label: segment.digest for segment in segments}
