"""Config codecs: how one HF field becomes Megatron values, and the way back.

A codec may take null for absent: `Family.nulls` says where HF's class does, and no other null reaches a codec.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .record import Record


class Field(Protocol):
    """Reads the HF fields named in `hf`, writes the Megatron values named in `mcore`; both ways."""

    @property
    def hf(self) -> tuple[str, ...]:
        """HF fields that this codec accounts for."""
        ...

    @property
    def mcore(self) -> tuple[str, ...]:
        """Megatron fields that this codec may write."""
        ...

    def to_mcore(self, config: Record) -> dict[str, object]:
        """Megatron values for an HF config."""
        ...

    def to_hf(self, values: Record) -> dict[str, object]:
        """HF values for a Megatron config."""
        ...


Kind = type[int] | type[float] | type[bool] | type[str]


@dataclass(frozen=True, slots=True)
class Renamed:
    """One value, two names. `default` is what HF's class takes where the field is absent; None: it is required.

    `also`: other HF spellings of it, which are read but not written.
    """

    hf_name: str
    mcore_name: str
    kind: Kind = int
    default: int | float | bool | str | None = None
    also: tuple[str, ...] = ()

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.hf_name, *self.also)

    @property
    def mcore(self) -> tuple[str, ...]:
        return (self.mcore_name,)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return {self.mcore_name: self._read(config, self._spelling(config))}

    def _spelling(self, config: Record) -> str:
        used = [name for name in self.hf if config.get(name) is not None]
        for name in used[1:]:
            if config.get(name) != config.get(used[0]):
                raise config.wrong(name, f"the same as {used[0]!r} ({config.get(used[0])!r})")
        return used[0] if used else self.hf_name

    def to_hf(self, values: Record) -> dict[str, object]:
        return {self.hf_name: self._read(values, self.mcore_name)}

    def _read(self, record: Record, name: str) -> object:
        value = record.get(name)
        if value is None and self.default is not None:
            return self.default
        readers: dict[Kind, Callable[[str], object]] = {
            int: record.integer,
            float: record.number,
            bool: record.boolean,
            str: record.text,
        }
        return readers[self.kind](name)


def same(name: str, kind: Kind = int, default: int | float | bool | str | None = None) -> Renamed:
    """One value that both sides call the same."""
    return Renamed(name, name, kind, default)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Megatron values that this family always has; HF has no field for them."""

    values: Mapping[str, object]
    hf: tuple[str, ...] = field(default=(), init=False)

    @property
    def mcore(self) -> tuple[str, ...]:
        return tuple(self.values)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return dict(self.values)

    def to_hf(self, values: Record) -> dict[str, object]:
        """A checkpoint trained with another value is another model: refuse it."""
        for name, expected in self.values.items():
            if name in values.values and values.get(name) != expected and name in _CHANGES_THE_FORWARD_PASS:
                raise values.unsupported(name, repr(expected), "This family's HF class has no such variant.")
        return {}


_CHANGES_THE_FORWARD_PASS = frozenset(
    {
        "normalization",
        "gated_linear_unit",
        "rotary_interleaved",
        "layernorm_zero_centered_gamma",
        "qk_layernorm",
        "add_bias_linear",
        "add_qkv_bias",
        "moe_router_pre_softmax",
        "moe_router_score_function",
        "moe_shared_expert_gate",
        "multi_latent_attention",
        "position_embedding_type",
        "attention_output_gate",
        "softmax_type",
    }
)


@dataclass(frozen=True, slots=True)
class Only:
    """An HF field that must have one value, since the mapping holds for no other; absent, it has it by default."""

    hf_name: str
    value: object
    why: str
    mcore: tuple[str, ...] = field(default=(), init=False)

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.hf_name,)

    def to_mcore(self, config: Record) -> dict[str, object]:
        if config.get(self.hf_name) not in (None, self.value):
            raise config.unsupported(self.hf_name, repr(self.value), self.why)
        return {}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {}


@dataclass(frozen=True, slots=True)
class Ignored:
    """An HF field without effect on weights or forward pass, and why. `other`: another value, to try that."""

    hf_name: str
    why: str
    other: object = None
