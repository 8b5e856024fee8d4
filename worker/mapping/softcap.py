"""Softcaps: HF's and Megatron's name for the size that scores or logits are bounded to; null means unbounded."""

from dataclasses import dataclass

from .record import Record


@dataclass(frozen=True, slots=True)
class Softcap:
    """`default` is what HF's class takes where the field is absent; an explicit null is none."""

    hf_name: str
    mcore_name: str
    default: float | None = None

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.hf_name,)

    @property
    def mcore(self) -> tuple[str, ...]:
        return (self.mcore_name,)

    def to_mcore(self, config: Record) -> dict[str, object]:
        absent = self.hf_name not in config.values
        if absent or config.get(self.hf_name) is None:
            return {self.mcore_name: self.default if absent else None}
        return {self.mcore_name: float(config.number(self.hf_name))}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {self.hf_name: values.get(self.mcore_name)}
