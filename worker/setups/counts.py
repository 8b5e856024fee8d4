"""A run's parameters, counted once for all parallelisms: the model's, and those of adapters beside it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ..adapters.linears import Linear, linears_among
from ..integration.peft import Peft
from ..jobs.setup_spec import PeftSettings
from ..mapping.bindings import bindings
from ..mapping.record import Record
from .census import Census, Place, Share, census, place_of, share_of
from .trainer_run import TrainerRun


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedWidths:
    """The layers with adapters at one place; of experts, those of one."""

    ranks: int
    """Of all products with A together."""
    expert_ranks: int
    outputs: Mapping[Share, int]
    """Their rows, by how ranks share them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """All that an estimate needs to know of the weights."""

    model: Census
    adapters: Census | None
    """None: the model itself is trained."""
    adapted: Mapping[Place, AdaptedWidths]
    largest: Mapping[Share, int]
    """Parameters of the largest layer with an adapter, by how ranks share it."""


def counts(run: TrainerRun) -> Counts:
    """The bindings are written out once, however many layers they are counted by."""
    bound, values = bindings(run.model), run.model.mcore
    model = census(bound, values)
    if run.peft is None:
        return Counts(model=model, adapters=None, adapted={}, largest={})
    adapted = tuple(_adapted(linears_among(bound), run.peft))
    return Counts(
        model=model,
        adapters=_adapters(adapted, run.peft, values),
        adapted=_widths(adapted, run.peft, values),
        largest=_largest(adapted, values),
    )


@dataclass(frozen=True, slots=True)
class _Adapted:
    """A layer and what of it has an adapter."""

    layer: Linear
    rows: tuple[int, ...]
    """Of each of its adapters."""


def _adapted(layers: Iterable[Linear], settings: PeftSettings) -> Iterator[_Adapted]:
    peft = Peft(**settings.model_dump(exclude={"init_adapter"}))
    parts_of = cache(peft.parts_of)  # all experts of a layer have one name
    for layer in layers:
        parts = parts_of(layer.full_name)
        if parts is None:
            continue
        if not layer.components or parts == ("",):
            yield _Adapted(layer, (layer.rows,))
            continue
        pieces = zip(layer.pieces, layer.components, strict=True)
        yield _Adapted(layer, tuple(piece.rows for piece, name in pieces if f"adapter_{name}" in parts))


def _adapters(adapted: Iterable[_Adapted], settings: PeftSettings, values: Record) -> Census:
    """A [rank, inputs] and B [outputs, rank], both cut where the layer is (`integration.low_rank.factor_shapes`).

    DoRA's magnitudes [outputs] are cut beside column-parallel layers alone, as their biases are.
    """
    found: defaultdict[Place, Counter[Share]] = defaultdict(Counter)
    for one in adapted:
        place, layer = place_of(one.layer.address), one.layer
        factors = settings.dim * (layer.columns * len(one.rows) + sum(one.rows))
        found[place][share_of(f"{layer.module}.weight", values)] += factors
        if settings.type == "dora":
            found[place][share_of(f"{layer.module}.bias", values)] += layer.rows
    return Census(dict(found))


def _widths(adapted: Iterable[_Adapted], settings: PeftSettings, values: Record) -> Mapping[Place, AdaptedWidths]:
    ranks: Counter[tuple[Place, bool]] = Counter()
    outputs: defaultdict[Place, Counter[Share]] = defaultdict(Counter)
    for one in adapted:
        if one.layer.is_expert and one.layer.index[-1]:
            continue  # one expert stands for all
        place = place_of(one.layer.address)
        ranks[place, one.layer.is_expert] += settings.dim * len(one.rows)
        outputs[place][share_of(f"{one.layer.module}.bias", values)] += one.layer.rows
    return {
        place: AdaptedWidths(ranks=ranks[place, False], expert_ranks=ranks[place, True], outputs=rows)
        for place, rows in outputs.items()
    }


def _largest(adapted: Iterable[_Adapted], values: Record) -> Mapping[Share, int]:
    found: dict[Share, int] = {}
    for one in adapted:
        share = share_of(f"{one.layer.module}.weight", values)
        found[share] = max(found.get(share, 0), one.layer.rows * one.layer.columns)
    return found
