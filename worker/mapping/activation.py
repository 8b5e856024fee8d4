"""Activation functions, by HF name and by the name that a written ModelConfig carries."""

from dataclasses import dataclass, field

from .record import Record

# HF name -> our name in model_config.json. Spellings that mean one function share a row's right side.
_FROM_HF = {"silu": "silu", "swish": "silu"}


@dataclass(frozen=True, slots=True)
class Activation:
    """`hidden_act`, which for this family must be a gated SiLU."""

    hf: tuple[str, ...] = field(default=("hidden_act",), init=False)
    mcore: tuple[str, ...] = field(default=("activation_func",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        name = config.text("hidden_act", "silu")
        if name not in _FROM_HF:
            raise config.unsupported("hidden_act", " or ".join(_FROM_HF), "No other activation is proven for it.")
        return {"activation_func": _FROM_HF[name]}

    def to_hf(self, values: Record) -> dict[str, object]:
        if values.text("activation_func") != "silu":
            raise values.unsupported("activation_func", "'silu'", "No other activation is proven for this family.")
        return {"hidden_act": "silu"}
