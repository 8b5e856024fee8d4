"""Gemma: scaled embeddings, zero-centred norms, tanh-GELU; and what its successors keep of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..activation import Activation
from ..attention import AttentionBiases, HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Field, Fixed, Ignored, Only, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..record import Record
from ..rope import Rope
from ..rules import Drop, Rule, When
from ..sizes import sizes
from .llama import ATTENTION_BIASES, CONSTRUCTION, DROPS, MLP_FILLS, WEIGHTS, decoder_shape
from .llama import tied as tied_if_said
from .llama import untied as untied_unless_said


def tied(config: Record) -> bool:
    """The output layer is the embedding: Gemma's default, which its configs do not spell out."""
    return config.boolean("tie_word_embeddings", True)


def untied(config: Record) -> bool:
    """The output layer has a weight of its own."""
    return not tied(config)


def tied_by_default[Conditional: (Rule, Drop)](rows: Iterable[Conditional]) -> tuple[Conditional, ...]:
    """The rows, with Gemma's default in their conditions."""
    conditions: dict[When, When] = {tied_if_said: tied, untied_unless_said: untied}
    return tuple(replace(row, when=conditions.get(row.when, row.when)) for row in rows)


@dataclass(frozen=True, slots=True)
class EmbeddingScale:
    """Embeddings enter the model times sqrt(hidden size); HF's class has no field for it."""

    hf: tuple[str, ...] = field(default=(), init=False)
    mcore: tuple[str, ...] = field(default=("embedding_scale",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return {"embedding_scale": config.positive("hidden_size") ** 0.5}

    def to_hf(self, values: Record) -> dict[str, object]:
        expected = values.positive("hidden_size") ** 0.5
        if values.get("embedding_scale") != expected:
            raise values.unsupported("embedding_scale", str(expected), "HF's class fixes it at sqrt(hidden_size).")
        return {}


@dataclass(frozen=True, slots=True)
class TanhGelu:
    """tanh-GELU by its several names: `hf_name` is HF's field today; `other`, of older configs, must agree."""

    hf_name: str
    other: str
    mcore: tuple[str, ...] = field(default=("activation_func",), init=False)

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.hf_name, self.other)

    def to_mcore(self, config: Record) -> dict[str, object]:
        for name in self.hf:
            # Gemma's first configs say "gelu" in `hidden_act` and mean its tanh approximation: HF reads them so.
            allowed = ("gelu_pytorch_tanh", "gelu") if name == "hidden_act" else ("gelu_pytorch_tanh",)
            if config.get(name) not in (None, *allowed):
                raise config.unsupported(name, " or ".join(allowed), "No other activation is proven for this family.")
        return {"activation_func": "gelu_pytorch_tanh"}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {self.hf_name: Activation(("gelu_pytorch_tanh",), self.hf_name).to_hf(values)[self.hf_name]}


def gemma_shape(activation: TanhGelu) -> tuple[Field, ...]:
    """What all Gemmas have in common."""
    plain = (codec for codec in decoder_shape(ties=True) if not isinstance(codec, Activation))
    return (
        *plain,
        activation,
        EmbeddingScale(),
        HeadSize(default=256),
        AttentionBiases(),
        Fixed({"layernorm_zero_centered_gamma": True}),
        # Megatron-Core fuses no tanh-GELU with its gate.
        Fixed({**CONSTRUCTION.values, "bias_activation_fusion": False}),
        Only("use_bidirectional_attention", False, "Megatron's GPT is causal."),
    )


GEMMA_IGNORED = (
    *WITHOUT_EFFECT,
    Ignored("cache_implementation", "how generation keeps keys and values", other="static"),
)

GEMMA = Family(
    name="gemma",
    page="worker/mapping/families/gemma.py",
    model_types=("gemma",),
    architectures=("GemmaForCausalLM",),
    features=("MQA and MHA", "scaled embeddings", "zero-centred norms", "attention biases", "rope: all of llama"),
    fields=(
        *gemma_shape(TanhGelu("hidden_act", "hidden_activation")),
        KeyValueHeads(default=16),
        Renamed("max_position_embeddings", "seq_length", int, 8192),
        Rope(),
    ),
    ignored=GEMMA_IGNORED,
    nulls=(*NULLS, "hidden_activation", "use_bidirectional_attention"),
    sizes=sizes,
    rules=(*tied_by_default(WEIGHTS), *ATTENTION_BIASES),
    fills=MLP_FILLS,
    drops=tied_by_default(DROPS),
    model="variant",
)
