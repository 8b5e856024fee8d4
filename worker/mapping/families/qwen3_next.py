"""Qwen3-Next: gated delta nets, full attention in every fourth layer, gated outputs, zero-centred norms, experts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from ..attention import HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Ignored, Only, Renamed, same
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layer_sets import LayerPairs, Layers, dense_layers, moe_layers
from ..layouts import RowBlock, RowLayout, Rows, Sizes
from ..moe import MOE_CONSTRUCTION, ROUTING, NormalizedTopK, SparseLayers, on, shared_expert_rules
from ..partial_rope import PartialRope
from ..record import Record
from ..rules import HFTensor, Rule
from ..sizes import sizes
from .llama import ATTENTION, CONSTRUCTION, DROPS, EMBEDDINGS, LAYER, MLP, MLP_WEIGHTS, QK_NORMS, decoder_shape
from .qwen3_moe import MOE

LINEAR, FULL = "linear_attention", "full_attention"
DELTA = LAYER + "linear_attn."
OF_MCORE = "decoder.layers.{layer}.self_attention."


@dataclass(frozen=True, slots=True)
class LayerKinds:
    """`layer_types`, or full attention in every `full_attention_interval`-th layer."""

    hf: tuple[str, ...] = field(default=("layer_types", "full_attention_interval"), init=False)
    mcore: tuple[str, ...] = field(default=("linear_attention_freq", "experimental_attention_variant"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        layers, every = config.positive("num_hidden_layers"), config.positive("full_attention_interval", 4)
        given = config.get("layer_types")
        kinds = given if given is not None else [FULL if (n + 1) % every == 0 else LINEAR for n in range(layers)]
        names = cast("list[object]", kinds) if isinstance(kinds, list) else []
        if len(names) != layers or any(name not in (LINEAR, FULL) for name in names):
            raise config.wrong("layer_types", f"{LINEAR!r} or {FULL!r} for each layer")
        pattern = [int(name == LINEAR) for name in names]
        return {"linear_attention_freq": pattern, "experimental_attention_variant": "gated_delta_net"}

    def to_hf(self, values: Record) -> dict[str, object]:
        pattern = cast("list[int]", values.get("linear_attention_freq"))
        return {"layer_types": [LINEAR if is_linear else FULL for is_linear in pattern]}


def layers_with(linear: bool) -> Layers:
    """The layers with a gated delta net, or those with full attention."""

    def layers(values: Record) -> LayerPairs:
        pattern = cast("list[int]", values.get("linear_attention_freq"))
        return tuple((layer, layer) for layer, is_linear in enumerate(pattern) if bool(is_linear) == linear)

    return layers


delta_layers, full_layers = layers_with(linear=True), layers_with(linear=False)


@dataclass(frozen=True, slots=True)
class GatedQueryGroups:
    """HF: q and its gate head by head; Megatron: [q.. gate.. k v | q.. gate.. k v | ...] by query group."""

    def row_blocks(self, part_rows: tuple[int, ...], sizes: Sizes) -> tuple[RowBlock, ...]:
        head, groups = sizes["head"], sizes["groups"]
        heads = sizes["heads"] // groups
        blocks: list[RowBlock] = []
        for group in range(groups):
            first = group * heads
            for half in range(2):
                blocks += [RowBlock(0, (2 * (first + number) + half) * head, head) for number in range(heads)]
            blocks += [RowBlock(part, group * head, head) for part in (1, 2)]
        return tuple(blocks)


@dataclass(frozen=True, slots=True)
class OfKeyHeads:
    """HF: the rows of each key head together, several kinds in turn; Megatron: one kind of all heads."""

    start: Callable[[Sizes], int]
    rows: Callable[[Sizes], int]

    def row_blocks(self, part_rows: tuple[int, ...], sizes: Sizes) -> tuple[RowBlock, ...]:
        heads = sizes["key_heads"]
        width = part_rows[0] // heads
        return tuple(RowBlock(0, head * width + self.start(sizes), self.rows(sizes)) for head in range(heads))


def next_sizes(values: Record) -> Sizes:
    """Attention's and the experts', and the delta nets'."""
    key_heads, value_heads = values.positive("linear_num_key_heads"), values.positive("linear_num_value_heads")
    key, value = values.positive("linear_key_head_dim"), values.positive("linear_value_head_dim")
    named = dict(sizes(values))
    return named | {
        "gated_q_rows": 2 * named["q_rows"],
        "key_heads": key_heads,
        "value_heads": value_heads,
        "key": key,
        "value": value,
        "values_of_key": value_heads // key_heads,
        "keys_rows": key_heads * key,
        "twice_keys_rows": 2 * key_heads * key,
        "values_rows": value_heads * value,
        "qkvz_rows": 2 * key_heads * key + 2 * value_heads * value,
        "ba_rows": 2 * value_heads,
        "conv_rows": 2 * key_heads * key + value_heads * value,
        "conv": values.positive("linear_conv_kernel_dim"),
    }


def _of_value_heads(sizes: Sizes) -> int:
    return sizes["values_of_key"] * sizes["value"]


def _part(hf: str, rows: str, mcore: str, layout: RowLayout) -> Rule:
    return Rule(
        hf=(HFTensor(DELTA + hf, (rows, "hidden")),), mcore=OF_MCORE + mcore, layout=layout, layers=delta_layers
    )


def _conv(name: str, start: str | int, rows: str) -> Rule:
    return Rule(
        hf=(HFTensor(DELTA + "conv1d.weight", ("conv_rows", 1, "conv")),),
        mcore=f"{OF_MCORE}conv1d.weight.{name}",
        layout=Rows(start, rows),
        layers=delta_layers,
    )


def _one(hf: str, shape: tuple[str, ...], mcore: str) -> Rule:
    return Rule(hf=(HFTensor(hf, shape),), mcore=OF_MCORE + mcore, layers=delta_layers)


_QKVZ, _BA = "in_proj_qkvz.weight", "in_proj_ba.weight"
DELTA_NET = (
    _one(LAYER + "input_layernorm.weight", ("hidden",), "in_proj.layer_norm_weight"),
    _part(_QKVZ, "qkvz_rows", "in_proj.weight.query", OfKeyHeads(lambda _: 0, lambda s: s["key"])),
    _part(_QKVZ, "qkvz_rows", "in_proj.weight.key", OfKeyHeads(lambda s: s["key"], lambda s: s["key"])),
    _part(_QKVZ, "qkvz_rows", "in_proj.weight.value", OfKeyHeads(lambda s: 2 * s["key"], _of_value_heads)),
    _part(
        _QKVZ, "qkvz_rows", "in_proj.weight.z", OfKeyHeads(lambda s: 2 * s["key"] + _of_value_heads(s), _of_value_heads)
    ),
    _part(_BA, "ba_rows", "in_proj.weight.beta", OfKeyHeads(lambda _: 0, lambda s: s["values_of_key"])),
    _part(
        _BA, "ba_rows", "in_proj.weight.alpha", OfKeyHeads(lambda s: s["values_of_key"], lambda s: s["values_of_key"])
    ),
    _conv("query", 0, "keys_rows"),
    _conv("key", "keys_rows", "keys_rows"),
    _conv("value", "twice_keys_rows", "values_rows"),
    _one(DELTA + "A_log", ("value_heads",), "A_log"),
    _one(DELTA + "dt_bias", ("value_heads",), "dt_bias"),
    _one(DELTA + "norm.weight", ("value",), "out_norm.weight"),
    _one(DELTA + "out_proj.weight", ("hidden", "values_rows"), "out_proj.weight"),
)

FULL_ATTENTION = on(
    full_layers,
    (
        Rule(
            hf=(HFTensor(LAYER + "input_layernorm.weight", ("hidden",)),),
            mcore=OF_MCORE + "linear_qkv.layer_norm_weight",
        ),
        Rule(
            hf=(
                HFTensor(ATTENTION + "q_proj.weight", ("gated_q_rows", "hidden")),
                HFTensor(ATTENTION + "k_proj.weight", ("kv_rows", "hidden")),
                HFTensor(ATTENTION + "v_proj.weight", ("kv_rows", "hidden")),
            ),
            mcore=OF_MCORE + "linear_qkv.weight",
            layout=GatedQueryGroups(),
        ),
        Rule(hf=(HFTensor(ATTENTION + "o_proj.weight", ("hidden", "q_rows")),), mcore=OF_MCORE + "linear_proj.weight"),
        *QK_NORMS,
    ),
)

SHARED = (
    *shared_expert_rules(MLP + "shared_expert."),
    Rule(
        hf=(HFTensor(MLP + "shared_expert_gate.weight", (1, "hidden")),),
        mcore="decoder.layers.{layer}.mlp.shared_experts.gate_weight",
        layers=moe_layers,
    ),
)

QWEN3_NEXT = Family(
    name="qwen3_next",
    page="worker/mapping/families/qwen3_next.py",
    model_types=("qwen3_next",),
    architectures=("Qwen3NextForCausalLM",),
    features=("gated delta net", "output gate", "MoE", "gated shared expert", "partial rotary", "zero-centred norms"),
    fields=(
        *decoder_shape(),
        HeadSize(default=256),
        KeyValueHeads(default=2),
        Renamed("max_position_embeddings", "seq_length", int, 32768),
        PartialRope(default=0.25),
        LayerKinds(),
        same("linear_conv_kernel_dim", int, 4),
        same("linear_key_head_dim", int, 128),
        same("linear_value_head_dim", int, 128),
        same("linear_num_key_heads", int, 16),
        same("linear_num_value_heads", int, 32),
        CONSTRUCTION,
        Renamed("num_experts", "num_moe_experts", int, 512, also=("num_local_experts",)),
        Renamed("moe_intermediate_size", "moe_ffn_hidden_size", int, 512),
        Renamed("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", int, 512),
        *ROUTING,
        NormalizedTopK(default=True),
        SparseLayers(),
        MOE_CONSTRUCTION,
        Only("attention_bias", False, "Megatron would give the experts biases too; no released model has any."),
        Fixed(
            {
                "add_bias_linear": False,
                "add_qkv_bias": False,
                "qk_layernorm": True,
                "attention_output_gate": True,
                "layernorm_zero_centered_gamma": True,
                "plain_gated_norms": True,
                "moe_shared_expert_gate": True,
            }
        ),
    ),
    ignored=(*WITHOUT_EFFECT, Ignored("output_router_logits", "chooses what forward() returns beside the logits")),
    nulls=(*NULLS, "layer_types", "mlp_only_layers"),
    sizes=next_sizes,
    rules=(*EMBEDDINGS, *DELTA_NET, *FULL_ATTENTION, *on(dense_layers, MLP_WEIGHTS), *MOE, *SHARED),
    drops=DROPS,
    unproven=("multi-token prediction, which HF's class neither loads nor computes: the plan refuses `mtp` tensors",),
)
