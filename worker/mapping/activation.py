"""Activation functions, by HF name and by the name that a written ModelConfig carries."""

from dataclasses import dataclass, field

from .record import Record

# HF name -> our name in model_config.json. Spellings that mean one function share a row's right side.
_FROM_HF = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(frozen=True, slots=True)
class Activation:
    """`hidden_act`, which must be one of the functions that are proven for the family; the first is its default."""

    proven: tuple[str, ...] = ("silu",)
    hf_name: str = "hidden_act"
    mcore: tuple[str, ...] = field(default=("activation_func",), init=False)

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.hf_name,)

    def to_mcore(self, config: Record) -> dict[str, object]:
        function = _FROM_HF.get(config.text(self.hf_name, self.proven[0]))
        if function not in self.proven:
            known = " or ".join(name for name, ours in _FROM_HF.items() if ours in self.proven)
            raise config.unsupported(self.hf_name, known, "No other activation is proven for this family.")
        return {"activation_func": function}

    def to_hf(self, values: Record) -> dict[str, object]:
        function = values.text("activation_func")
        if function not in self.proven:
            proven = " or ".join(self.proven)
            raise values.unsupported("activation_func", proven, "No other activation is proven for this family.")
        return {self.hf_name: function}
