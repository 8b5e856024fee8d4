"""Rope on the first channels of each head: HF's `partial_rotary_factor` <-> Megatron's `rotary_percent`."""

from dataclasses import dataclass, field

from .record import Record
from .rope import Rope

_FACTOR = "partial_rotary_factor"
_SECTIONS = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True, slots=True)
class PartialRope:
    """`rope` on a part of each head: as `rope_parameters` says, else the config's own field, else `default`."""

    rope: Rope = field(default_factory=Rope)
    default: float = 1.0

    @property
    def hf(self) -> tuple[str, ...]:
        return (*self.rope.hf, _FACTOR)

    @property
    def mcore(self) -> tuple[str, ...]:
        return self.rope.mcore

    def to_mcore(self, config: Record) -> dict[str, object]:
        return self.rope.to_mcore(_without_factor(config)) | {"rotary_percent": self._factor(config)}

    def _factor(self, config: Record) -> float:
        for section in (*(config.section(name) for name in _SECTIONS), config):
            if section is not None and _FACTOR in section.values:
                return float(section.number(_FACTOR))
        return self.default

    def to_hf(self, values: Record) -> dict[str, object]:
        whole = self.rope.to_hf(Record({**values.values, "rotary_percent": 1.0}, values.origin))
        parameters = Record(whole, values.origin).section("rope_parameters")
        assert parameters is not None  # what Rope writes
        factor = float(values.number("rotary_percent", 1.0))
        return {"rope_parameters": {**parameters.values, _FACTOR: factor}}


def _without_factor(config: Record) -> Record:
    sections = {name: config.section(name) for name in _SECTIONS}
    stripped = {
        name: {option: value for option, value in section.values.items() if option != _FACTOR}
        for name, section in sections.items()
        if section is not None
    }
    return Record({**config.values, **stripped}, config.origin)
