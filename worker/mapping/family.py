"""A family: the page that says how one kind of model maps, config and tensors, both ways."""

from collections.abc import Callable
from dataclasses import dataclass

from ..jobs.errors import BadInputError
from .fields import Field, Ignored
from .hf_fields import NULLS
from .layouts import Sizes
from .model_config import MegatronValues
from .record import Record
from .rope import UNDECLARED_YARN
from .rules import Copied, Drop, Fill, Rule
from .upstream_classes import ModelKind, model_kind, outer_fields

ONLY_HF = "hf."
"""Begins the names of values that HF tells apart and Megatron does not; they travel in the written metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One spec sheet. `sizes` reads the named sizes of the rules off the Megatron values.

    `model` is the class of Megatron's config: upstream's GPT or hybrid one, or our variant of GPT's.
    """

    name: str
    page: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    features: tuple[str, ...]
    fields: tuple[Field, ...]
    ignored: tuple[Ignored, ...]
    sizes: Callable[[Record], Sizes]
    rules: tuple[Rule, ...]
    fills: tuple[Fill, ...] = ()
    drops: tuple[Drop, ...] = ()
    copies: tuple[Copied, ...] = ()
    nulls: tuple[str, ...] = NULLS
    """HF fields whose null HF's class reads as the codecs do. No other null passes: HF takes it for no default."""
    model: ModelKind = "gpt"
    unproven: tuple[str, ...] = ()
    """What no test here can show, and why."""

    def to_mcore(self, config: Record) -> Record:
        """Megatron's values, outer and transformer fields in one record. BadInputError on an unknown field or null."""
        self._refuse_unknown_fields(config)
        self._refuse_nulls(config)
        values: dict[str, object] = {}
        for codec in self.fields:
            values |= codec.to_mcore(config)
        return Record(values, f"{config.origin} as Megatron values")

    def to_hf(self, values: Record) -> Record:
        """The HF config of Megatron values: what config.json says of weights and forward pass."""
        config: dict[str, object] = {"architectures": list(self.architectures[:1]), "model_type": self.model_types[0]}
        for codec in self.fields:
            config |= codec.to_hf(values)
        return Record(config, f"{values.origin} as HF config")

    def _refuse_unknown_fields(self, config: Record) -> None:
        known = {name for codec in self.fields for name in codec.hf} | {row.hf_name for row in self.ignored}
        for name, value in config.values.items():
            if name not in known:
                raise BadInputError(
                    "unknown_config_field",
                    f"{config.origin}: field {name!r}",
                    found=repr(value),
                    expected=f"a field that family {self.name} maps or names as without effect",
                    next_step=f"Remove it if it has no effect on the model, or add it to {self.page}.",
                )

    def _refuse_nulls(self, config: Record) -> None:
        meaningless = {name for codec in self.fields for name in codec.hf} - {*self.nulls}
        for name, value in config.values.items():
            if value is None and name in meaningless:
                raise BadInputError(
                    "bad_config",
                    f"{config.origin}: field {name!r}",
                    found="null",
                    expected=f"a value, or no such field, which means the default of {self.name}'s HF class",
                    next_step=f"Mend the config. Where HF's class does read null, add it to `nulls` in {self.page}.",
                )


def megatron_values(family: Family, values: Record, source: str) -> MegatronValues:
    """`values` as upstream's classes take them; `source` is recorded beside them."""
    undeclared = {name: value for name, value in values.values.items() if name in UNDECLARED_YARN}
    only_hf = {name: value for name, value in values.values.items() if name.startswith(ONLY_HF)}
    declared = {name: value for name, value in values.values.items() if name not in undeclared | only_hf}
    kind = model_kind(family.model, values)
    outer = outer_fields(kind, values)
    return MegatronValues(
        kind=kind,
        model={name: value for name, value in declared.items() if name in outer},
        transformer={name: value for name, value in declared.items() if name not in outer},
        extra={"family": family.name, "hf_source": source, "undeclared": undeclared, "only_hf": only_hf},
    )
