"""Attention's shape in both configs: key/value heads, head size, biases, sliding window."""

from dataclasses import dataclass, field

from .record import Record


@dataclass(frozen=True, slots=True)
class KeyValueHeads:
    """HF may leave `num_key_value_heads` out; `default` is the class's own number, None means as many as heads."""

    default: int | None = None
    hf: tuple[str, ...] = field(default=("num_key_value_heads",), init=False)
    mcore: tuple[str, ...] = field(default=("num_query_groups",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        heads = config.positive("num_attention_heads")
        # An explicit null means as many as heads even where the class has a number of its own.
        absent = self.default if "num_key_value_heads" not in config.values and self.default else heads
        groups = config.positive("num_key_value_heads", absent)
        if heads % groups:
            raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
        return {"num_query_groups": groups}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"num_key_value_heads": values.positive("num_query_groups", values.positive("num_attention_heads"))}


@dataclass(frozen=True, slots=True)
class HeadSize:
    """`head_dim`; where it is left out `default`, the class's own number, or else hidden size / heads."""

    default: int | None = None
    hf: tuple[str, ...] = field(default=("head_dim",), init=False)
    mcore: tuple[str, ...] = field(default=("kv_channels",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        if self.default and "head_dim" not in config.values:
            return {"kv_channels": self.default}
        hidden, heads = config.positive("hidden_size"), config.positive("num_attention_heads")
        if config.get("head_dim") is None and hidden % heads:
            raise config.wrong("head_dim", f"a number, since hidden_size {hidden} is no multiple of {heads} heads")
        return {"kv_channels": config.positive("head_dim", hidden // heads)}

    def to_hf(self, values: Record) -> dict[str, object]:
        split = values.positive("hidden_size") // values.positive("num_attention_heads")
        return {"head_dim": values.positive("kv_channels", split)}


@dataclass(frozen=True, slots=True)
class Biases:
    """HF: attention (q, k, v, o) and MLP. Megatron: q, k, v alone, or every linear layer.

    Unequal HF settings take Megatron's "every linear layer"; the biases that HF lacks are zeros (`Fill`).
    """

    hf: tuple[str, ...] = field(default=("attention_bias", "mlp_bias"), init=False)
    mcore: tuple[str, ...] = field(default=("add_bias_linear", "add_qkv_bias", "hf.mlp_bias"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        attention, mlp = config.boolean("attention_bias", False), config.boolean("mlp_bias", False)
        return {"add_bias_linear": attention or mlp, "add_qkv_bias": attention, "hf.mlp_bias": mlp}

    def to_hf(self, values: Record) -> dict[str, object]:
        every, qkv = values.boolean("add_bias_linear", True), values.boolean("add_qkv_bias", False)
        if qkv and not every:
            raise values.unsupported(
                "add_qkv_bias", "add_bias_linear too", "HF's Llama has a bias on o_proj wherever q, k, v have one."
            )
        if values.get("hf.mlp_bias") is None:  # no import wrote it: Megatron gives every layer a bias, or none
            return {"attention_bias": every, "mlp_bias": every}
        return {"attention_bias": qkv, "mlp_bias": values.boolean("hf.mlp_bias")}


@dataclass(frozen=True, slots=True)
class AttentionBiases:
    """HF has biases on q, k, v and o or none, and never on the MLP, whose biases in Megatron are zeros (`Fill`)."""

    hf: tuple[str, ...] = field(default=("attention_bias",), init=False)
    mcore: tuple[str, ...] = field(default=("add_bias_linear", "add_qkv_bias"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        biased = config.boolean("attention_bias", False)
        return {"add_bias_linear": biased, "add_qkv_bias": biased}

    def to_hf(self, values: Record) -> dict[str, object]:
        every, qkv = values.boolean("add_bias_linear", True), values.boolean("add_qkv_bias", False)
        if qkv and not every:
            raise values.unsupported(
                "add_qkv_bias", "add_bias_linear too", "This HF class has a bias on o_proj wherever q, k, v have one."
            )
        return {"attention_bias": every}


@dataclass(frozen=True, slots=True)
class NoBiases:
    """A family whose HF class has no biases at all."""

    hf: tuple[str, ...] = field(default=(), init=False)
    mcore: tuple[str, ...] = field(default=("add_bias_linear", "add_qkv_bias"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return {"add_bias_linear": False, "add_qkv_bias": False}

    def to_hf(self, values: Record) -> dict[str, object]:
        for name in self.mcore:
            if values.boolean(name, name == "add_bias_linear"):
                raise values.unsupported(name, "false", "This family's HF class has no biases.")
        return {}


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """HF counts the tokens that are seen, itself included; Megatron the distance to the left: window - 1."""

    default: int | None = None
    hf: tuple[str, ...] = field(default=("sliding_window",), init=False)
    mcore: tuple[str, ...] = field(default=("window_size",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        window = config.get("sliding_window") if "sliding_window" in config.values else self.default
        if window is None:
            return {"window_size": None}
        return {"window_size": [config.positive("sliding_window", self.default) - 1, 0]}

    def to_hf(self, values: Record) -> dict[str, object]:
        match values.get("window_size"):
            case None:
                return {"sliding_window": None}
            case [int(left), 0] | (int(left), 0):
                return {"sliding_window": left + 1}
            case _:
                raise values.wrong("window_size", "null or [left, 0]")
