"""Multi-token prediction: layers after the decoder's own that predict further tokens, in checkpoints of both sides."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .layer_sets import mtp_layers
from .record import Record
from .rules import Copied, HFTensor, Rule, When

LAYER = "model.layers.{layer}."
OF_MCORE = "mtp.layers.{layer}."
_DECODER_LAYER = "decoder.layers.{layer}."


@dataclass(frozen=True, slots=True)
class PredictedTokens:
    """`num_nextn_predict_layers`; absent means none, since HF's classes neither load nor save these layers."""

    hf: tuple[str, ...] = field(
        default=("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"), init=False
    )
    mcore: tuple[str, ...] = field(default=("mtp_num_layers", "mtp_loss_scaling_factor"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        counts = {config.get(name) for name in self.hf if config.get(name) is not None}
        if len(counts) > 1:
            raise config.wrong(self.hf[0], f"the same as in its other spellings {self.hf[1:]}")
        layers = max((config.integer(name, 0) for name in self.hf), default=0)
        return {"mtp_num_layers": layers or None, "mtp_loss_scaling_factor": 0.1}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"num_nextn_predict_layers": values.integer("mtp_num_layers", 0)}


def mtp_rules(layer_rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """`layer_rules` are those of the decoder's last kind of layer, which each of these layers holds one of."""
    inside = tuple(
        replace(rule, mcore=rule.mcore.replace(_DECODER_LAYER, OF_MCORE + "transformer_layer."), layers=mtp_layers)
        for rule in layer_rules
    )
    return (*_AROUND, *inside)


_AROUND = tuple(
    Rule(hf=(HFTensor(LAYER + hf, shape),), mcore=OF_MCORE + mcore, layers=mtp_layers)
    for hf, shape, mcore in (
        ("enorm.weight", ("hidden",), "enorm.weight"),
        ("hnorm.weight", ("hidden",), "hnorm.weight"),
        ("eh_proj.weight", ("hidden", "two_hidden"), "eh_proj.weight"),
        ("shared_head.norm.weight", ("hidden",), "final_layernorm.weight"),
    )
)


def mtp_copies(untied: When) -> tuple[Copied, ...]:
    """DeepSeek's files repeat the embedding and the output layer in each of these layers."""
    return (
        Copied(hf=LAYER + "embed_tokens.weight", of="model.embed_tokens.weight", layers=mtp_layers),
        Copied(hf=LAYER + "shared_head.head.weight", of="lm_head.weight", layers=mtp_layers, when=untied),
    )
