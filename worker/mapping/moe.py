"""Mixtures of experts: which layers have them, how the router weighs them, and their tensors."""

from dataclasses import dataclass, field, replace
from typing import cast

from .fields import Fixed, Renamed
from .layer_sets import Layers, moe_layers, moe_pattern
from .record import Record
from .rules import HFTensor, Rule

EXPERTS_OF_MCORE = "decoder.layers.{layer}.mlp.experts.experts."

# What trainers set for experts; none of it changes the mathematics.
MOE_CONSTRUCTION = Fixed(
    {
        "moe_grouped_gemm": True,
        "moe_token_dispatcher_type": "alltoall",
        "moe_permute_fusion": True,
        "moe_router_load_balancing_type": "aux_loss",
    }
)

ROUTING = (
    Renamed("num_experts_per_tok", "moe_router_topk", int),
    Renamed("router_aux_loss_coef", "moe_aux_loss_coeff", float, 0.001),
)

ONE_NORMALIZED_EXPERT = "Megatron-Core weighs a single expert by its softmax; HF's weight, normalised, is always 1."


@dataclass(frozen=True, slots=True)
class NormalizedTopK:
    """`norm_topk_prob`: the chosen experts' softmax over all is made to sum to 1, which is their softmax alone."""

    default: bool = False
    hf: tuple[str, ...] = field(default=("norm_topk_prob",), init=False)
    mcore: tuple[str, ...] = field(default=("moe_router_pre_softmax", "moe_router_score_function"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        normalized = config.boolean("norm_topk_prob", self.default)
        if normalized and config.integer("num_experts_per_tok") == 1:
            raise config.unsupported("num_experts_per_tok", "two or more", ONE_NORMALIZED_EXPERT)
        return {"moe_router_pre_softmax": not normalized, "moe_router_score_function": "softmax"}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"norm_topk_prob": not values.boolean("moe_router_pre_softmax", False)}


@dataclass(frozen=True, slots=True)
class AlwaysNormalized:
    """HF's class always normalises the chosen experts' weights and has no field for it."""

    hf: tuple[str, ...] = field(default=(), init=False)
    mcore: tuple[str, ...] = field(default=("moe_router_pre_softmax", "moe_router_score_function"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        if config.integer("num_experts_per_tok") == 1:
            raise config.unsupported("num_experts_per_tok", "two or more", ONE_NORMALIZED_EXPERT)
        return {"moe_router_pre_softmax": False, "moe_router_score_function": "softmax"}

    def to_hf(self, values: Record) -> dict[str, object]:
        if values.boolean("moe_router_pre_softmax", False):
            raise values.unsupported("moe_router_pre_softmax", "false", "This HF class always normalises the weights.")
        return {}


@dataclass(frozen=True, slots=True)
class SparseLayers:
    """Qwen: every `decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`."""

    hf: tuple[str, ...] = field(default=("decoder_sparse_step", "mlp_only_layers"), init=False)
    mcore: tuple[str, ...] = field(default=("moe_layer_freq",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        step = config.positive("decoder_sparse_step", 1)
        dense = cast("list[int]", config.get("mlp_only_layers") or [])
        layers = range(config.positive("num_hidden_layers"))
        return {"moe_layer_freq": frequency([layer not in dense and (layer + 1) % step == 0 for layer in layers])}

    def to_hf(self, values: Record) -> dict[str, object]:
        dense = [layer for layer, is_moe in enumerate(moe_pattern(values)) if not is_moe]
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def frequency(pattern: list[bool]) -> int | list[int]:
    """Megatron's `moe_layer_freq`: 1 where all layers have experts, which keeps them in one stack; else the list."""
    return 1 if all(pattern) else [int(is_moe) for is_moe in pattern]


def on(layers: Layers, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, for these layers alone."""
    return tuple(replace(rule, layers=layers) for rule in rules)


def moe_rules(norm: str, router: str, experts: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """The norm before the experts, the router, and one matrix an expert; `experts` holds `{layer}` and `{expert}`."""
    return on(
        moe_layers,
        (
            Rule(hf=(HFTensor(norm, ("hidden",)),), mcore="decoder.layers.{layer}.pre_mlp_layernorm.weight"),
            Rule(hf=(HFTensor(router, ("experts", "hidden")),), mcore="decoder.layers.{layer}.mlp.router.weight"),
            Rule(
                hf=(
                    HFTensor(f"{experts}{gate}.weight", ("moe_ffn", "hidden")),
                    HFTensor(f"{experts}{up}.weight", ("moe_ffn", "hidden")),
                ),
                mcore=EXPERTS_OF_MCORE + "linear_fc1.weight",
            ),
            Rule(
                hf=(HFTensor(f"{experts}{down}.weight", ("hidden", "moe_ffn")),),
                mcore=EXPERTS_OF_MCORE + "linear_fc2.weight",
            ),
        ),
    )
