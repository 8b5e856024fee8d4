"""GLM-4.5 and 4.6: partial rope, biases on q, k and v, sigmoid-routed experts after dense layers, MTP."""

from dataclasses import dataclass, field, replace

from ..attention import HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Ignored, Only, Renamed
from ..hf_fields import WITHOUT_EFFECT
from ..layer_sets import dense_layers
from ..moe import SIGMOID_ROUTER, DenseFirst, Groups, SeveralExperts, SharedExperts, on
from ..mtp import PredictedTokens, mtp_copies, mtp_rules
from ..partial_rope import PartialRope
from ..record import Record
from ..sizes import sizes
from .deepseek_v3 import BIASED_EXPERTS
from .llama import (
    ATTENTION_WEIGHTS,
    CONSTRUCTION,
    DROPS,
    EMBEDDINGS,
    MLP_WEIGHTS,
    QK_NORMS,
    QKV_BIAS,
    attention_biased,
    decoder_shape,
    untied,
)


@dataclass(frozen=True, slots=True)
class QueryKeyValueBiases:
    """`attention_bias`: on q, k and v; o never has one."""

    hf: tuple[str, ...] = field(default=("attention_bias",), init=False)
    mcore: tuple[str, ...] = field(default=("add_bias_linear", "add_qkv_bias"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        return {"add_bias_linear": False, "add_qkv_bias": config.boolean("attention_bias", False)}

    def to_hf(self, values: Record) -> dict[str, object]:
        if values.boolean("add_bias_linear", True):
            raise values.unsupported("add_bias_linear", "false", "HF's class has biases on q, k and v alone.")
        return {"attention_bias": values.boolean("add_qkv_bias", False)}


def normed_heads(config: Record) -> bool:
    """Every query and key head has a norm."""
    return config.boolean("use_qk_norm", False)


ATTENTION = (
    *ATTENTION_WEIGHTS,
    replace(QKV_BIAS, when=attention_biased),
    *(replace(rule, when=normed_heads) for rule in QK_NORMS),
)

GLM4_MOE = Family(
    name="glm4_moe",
    page="worker/mapping/families/glm4_moe.py",
    model_types=("glm4_moe",),
    architectures=("Glm4MoeForCausalLM",),
    features=("MoE", "experts in groups", "expert bias", "shared experts", "GQA", "partial rotary", "MTP"),
    fields=(
        *decoder_shape(eps=1e-5),
        HeadSize(),
        KeyValueHeads(default=8),
        Renamed("max_position_embeddings", "seq_length", int, 131072),
        PartialRope(default=0.5),
        QueryKeyValueBiases(),
        Renamed("use_qk_norm", "qk_layernorm", bool, False),
        CONSTRUCTION,
        Renamed("n_routed_experts", "num_moe_experts", int, 128, also=("num_local_experts",)),
        SeveralExperts(default=8),
        Renamed("moe_intermediate_size", "moe_ffn_hidden_size", int, 1408),
        Renamed("routed_scaling_factor", "moe_router_topk_scaling_factor", float, 1.0),
        SharedExperts(),
        DenseFirst(default=1),
        Groups(scores_summed=2, n_group=1, topk_group=1),
        SIGMOID_ROUTER,
        PredictedTokens(),
        Only("norm_topk_prob", True, "Megatron-Core always normalises sigmoid scores."),
    ),
    ignored=(*WITHOUT_EFFECT, Ignored("output_router_logits", "chooses what forward() returns beside the logits")),
    sizes=lambda values: {**sizes(values), "two_hidden": 2 * values.positive("hidden_size")},
    rules=(
        *EMBEDDINGS,
        *ATTENTION,
        *on(dense_layers, MLP_WEIGHTS),
        *BIASED_EXPERTS,
        *mtp_rules((*ATTENTION, *BIASED_EXPERTS)),
    ),
    drops=DROPS,
    copies=mtp_copies(untied),
)
