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


@dataclass(frozen=True, slots=True)
class SeveralExperts:
    """Experts of a token whose sigmoid scores HF divides by their sum; Megatron divides those of two or more."""

    default: int
    hf: tuple[str, ...] = field(default=("num_experts_per_tok",), init=False)
    mcore: tuple[str, ...] = field(default=("moe_router_topk",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        chosen = config.positive("num_experts_per_tok", self.default)
        if chosen == 1:
            raise config.unsupported("num_experts_per_tok", "two or more", ONE_NORMALIZED_EXPERT)
        return {"moe_router_topk": chosen}

    def to_hf(self, values: Record) -> dict[str, object]:
        return {"num_experts_per_tok": values.positive("moe_router_topk")}


@dataclass(frozen=True, slots=True)
class SharedExperts:
    """`n_shared_experts`, each as wide as a routed one, are one MLP in both classes."""

    default: int = 1
    hf: tuple[str, ...] = field(default=("n_shared_experts",), init=False)
    mcore: tuple[str, ...] = field(default=("moe_shared_expert_intermediate_size",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        width = config.positive("moe_intermediate_size")
        return {"moe_shared_expert_intermediate_size": config.positive("n_shared_experts", self.default) * width}

    def to_hf(self, values: Record) -> dict[str, object]:
        shared, width = values.positive("moe_shared_expert_intermediate_size"), values.positive("moe_ffn_hidden_size")
        if shared % width:
            raise values.wrong("moe_shared_expert_intermediate_size", f"a multiple of moe_ffn_hidden_size ({width})")
        return {"n_shared_experts": shared // width}


@dataclass(frozen=True, slots=True)
class DenseFirst:
    """The first `first_k_dense_replace` layers have an ordinary MLP, the others experts."""

    default: int = 0
    hf: tuple[str, ...] = field(default=("first_k_dense_replace", "moe_layer_freq"), init=False)
    mcore: tuple[str, ...] = field(default=("moe_layer_freq",), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        layers, dense = config.positive("num_hidden_layers"), config.integer("first_k_dense_replace", self.default)
        if config.get("moe_layer_freq") not in (None, 1):
            raise config.unsupported("moe_layer_freq", "1", "HF's class reads first_k_dense_replace alone.")
        return {"moe_layer_freq": frequency([layer >= dense for layer in range(layers)])}

    def to_hf(self, values: Record) -> dict[str, object]:
        pattern = moe_pattern(values)
        dense = pattern.index(True) if True in pattern else len(pattern)
        if not all(pattern[dense:]):
            raise values.unsupported("moe_layer_freq", "dense layers first", "HF's class knows no other order.")
        return {"first_k_dense_replace": dense}


@dataclass(frozen=True, slots=True)
class Groups:
    """`n_group`, `topk_group`: only experts of the best groups are chosen; as many as there are means no limit."""

    scores_summed: int
    """How many of a group's best scores HF's class judges it by."""
    n_group: int | None = None
    topk_group: int | None = None
    """What HF's class takes where these fields are absent; None: they are required."""
    hf: tuple[str, ...] = field(default=("n_group", "topk_group"), init=False)
    mcore: tuple[str, ...] = field(
        default=("moe_router_num_groups", "moe_router_group_topk", "group_scores_summed"), init=False
    )

    def to_mcore(self, config: Record) -> dict[str, object]:
        groups = config.positive("n_group", self.n_group)
        chosen = config.positive("topk_group", self.topk_group)
        if chosen > groups:
            raise config.wrong("topk_group", f"at most n_group ({groups})")
        if chosen == groups:
            return {"moe_router_num_groups": None, "moe_router_group_topk": None}
        alike = config.positive("num_experts_per_tok") // chosen == self.scores_summed
        own = {} if alike else {"group_scores_summed": self.scores_summed}
        return {"moe_router_num_groups": groups, "moe_router_group_topk": chosen, **own}

    def to_hf(self, values: Record) -> dict[str, object]:
        if values.get("moe_router_num_groups") is None:
            return {"n_group": 1, "topk_group": 1}
        groups, chosen = values.positive("moe_router_num_groups"), values.positive("moe_router_group_topk")
        if values.integer("group_scores_summed", values.positive("moe_router_topk") // chosen) != self.scores_summed:
            why = "HF's class always judges a group by that many of its best scores."
            raise values.unsupported("group_scores_summed", str(self.scores_summed), why)
        return {"n_group": groups, "topk_group": chosen}


# DeepSeek-V3's router and its kin: sigmoid scores, chosen with a bias that balances the experts, then normalised.
SIGMOID_ROUTER = Fixed(
    {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_dtype": "fp32",
        "moe_router_bias_update_rate": 1e-3,
        "moe_shared_expert_overlap": True,
        "moe_grouped_gemm": True,
        "moe_token_dispatcher_type": "alltoall",
        "moe_permute_fusion": True,
        "moe_router_load_balancing_type": "seq_aux_loss",
        "moe_aux_loss_coeff": 1e-4,
    }
)


def shared_expert_rules(prefix: str) -> tuple[Rule, ...]:
    """The MLP beside the routed experts."""
    return on(
        moe_layers,
        (
            Rule(
                hf=(
                    HFTensor(prefix + "gate_proj.weight", ("shared_ffn", "hidden")),
                    HFTensor(prefix + "up_proj.weight", ("shared_ffn", "hidden")),
                ),
                mcore="decoder.layers.{layer}.mlp.shared_experts.linear_fc1.weight",
            ),
            Rule(
                hf=(HFTensor(prefix + "down_proj.weight", ("hidden", "shared_ffn")),),
                mcore="decoder.layers.{layer}.mlp.shared_experts.linear_fc2.weight",
            ),
        ),
    )


def router_bias_rule(hf: str) -> tuple[Rule, ...]:
    """The bias that balances the experts; fp32 in both, whatever the weights are."""
    return on(
        moe_layers,
        (Rule(hf=(HFTensor(hf, ("experts",)),), mcore="decoder.layers.{layer}.mlp.router.expert_bias"),),
    )
