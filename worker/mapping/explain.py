"""Where each Megatron value comes from, field by field: told by the codecs themselves, so that it cannot differ."""

from dataclasses import dataclass
from typing import Literal

from .family import Family
from .fields import Field
from .record import Record

Origin = Literal["HF field", "HF class default", "derived", "family default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One Megatron value. `hf`: the HF fields that were read for it, with their values; null where absent."""

    mcore: str
    value: object
    origin: Origin
    hf: dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """An HF field of this config that is without effect, and why."""

    hf: str
    value: object
    why: str


def explain(family: Family, config: Record) -> tuple[tuple[Explained, ...], tuple[LeftOut, ...]]:
    """Every Megatron value of the config, and every field that it has for nothing. BadInputError as in mapping."""
    family.to_mcore(config)
    values = tuple(line for codec in family.fields for line in _explained(codec, config))
    ignored = tuple(
        LeftOut(hf=row.hf_name, value=config.get(row.hf_name), why=row.why)
        for row in family.ignored
        if row.hf_name in config.values
    )
    return values, ignored


def _explained(codec: Field, config: Record) -> tuple[Explained, ...]:
    read = {name: config.get(name) for name in codec.hf if name in config.values}
    values = codec.to_mcore(config)
    return tuple(
        Explained(mcore=name, value=value, origin=_origin(codec, read, values), hf=read)
        for name, value in values.items()
    )


def _origin(codec: Field, read: dict[str, object], values: dict[str, object]) -> Origin:
    if not codec.hf:
        return "family default"
    if not read:
        return "HF class default"
    return "HF field" if len(read) == 1 and len(values) == 1 else "derived"
