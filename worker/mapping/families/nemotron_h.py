"""Nemotron-H and Nemotron 3: Mamba-2, attention, MLP and expert layers in any order; no positions."""

from dataclasses import dataclass, field
from typing import cast

from ..activation import Activation
from ..attention import HeadSize, KeyValueHeads
from ..family import ONLY_HF, Family
from ..fields import Fixed, Ignored, Only, Renamed, same
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layer_sets import LayerPairs, Layers
from ..layouts import QueryGroups, Rows, Sizes
from ..moe import EXPERTS_OF_MCORE, Groups
from ..precision import Precision
from ..quantization import Storage
from ..record import Record
from ..rules import HFTensor, Rule
from ..sizes import sizes
from ..vocabulary import Vocabulary
from .llama import CONSTRUCTION

LAYER = "backbone.layers.{layer}."
MIXER = LAYER + "mixer."
OF_MCORE = "decoder.layers.{layer}."

_KINDS = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
_OLDER_KINDS = {"mamba": "M", "attention": "*"}


@dataclass(frozen=True, slots=True)
class LayerPattern:
    """`layers_block_type`, or older `hybrid_override_pattern`: one kind a layer."""

    hf: tuple[str, ...] = field(
        default=("layers_block_type", "layer_types", "hybrid_override_pattern", "num_hidden_layers"), init=False
    )
    mcore: tuple[str, ...] = field(default=("hybrid_layer_pattern", "num_layers"), init=False)

    def to_mcore(self, config: Record) -> dict[str, object]:
        pattern = pattern_of(config)
        if config.integer("num_hidden_layers", len(pattern)) != len(pattern):
            raise config.wrong("num_hidden_layers", f"{len(pattern)}, as many as the pattern has layers")
        return {"hybrid_layer_pattern": pattern, "num_layers": len(pattern)}

    def to_hf(self, values: Record) -> dict[str, object]:
        names = {letter: name for name, letter in _KINDS.items()}
        pattern = values.text("hybrid_layer_pattern")
        if set(pattern) - names.keys():
            raise values.unsupported("hybrid_layer_pattern", " ".join(names), "HF's class has no other kinds of layer.")
        return {"layers_block_type": [names[letter] for letter in pattern]}


def pattern_of(config: Record) -> str:
    """One letter a layer, as Megatron writes them, of an HF config."""
    given = config.get("layers_block_type") or config.get("layer_types")
    if given is None:
        pattern = config.text("hybrid_override_pattern", "ME*-")
        if set(pattern) - set(_KINDS.values()):
            raise config.wrong("hybrid_override_pattern", f"letters {' '.join(_KINDS.values())}")
        return pattern
    letters = {**_KINDS, **_OLDER_KINDS}
    kinds = cast("list[object]", given) if isinstance(given, list) else []
    if not kinds or any(kind not in letters for kind in kinds):
        raise config.wrong("layers_block_type", f"a list of {', '.join(letters)}")
    return "".join(letters[str(kind)] for kind in kinds)


def layers_of(letter: str) -> Layers:
    """The layers of one kind."""

    def layers(values: Record) -> LayerPairs:
        pattern = values.text("hybrid_layer_pattern")
        return tuple((layer, layer) for layer, kind in enumerate(pattern) if kind == letter)

    return layers


mamba_layers, attention_layers, mlp_layers, moe_layers = (layers_of(letter) for letter in "M*-E")

_EXPERTS = (
    Renamed("n_routed_experts", "num_moe_experts", int, 8, also=("num_local_experts",)),
    Renamed("num_experts_per_tok", "moe_router_topk", int, 2),
    Renamed("moe_intermediate_size", "moe_ffn_hidden_size", int, 7688),
    Renamed("moe_shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", int, 7688),
    Renamed("routed_scaling_factor", "moe_router_topk_scaling_factor", float, 1.0),
    Groups(scores_summed=2, n_group=1, topk_group=1),
)
_ROUTER = {
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_bias_update_rate": 1e-3,
    "moe_router_dtype": "fp32",
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_aux_loss_coeff": 1e-4,
    "moe_grouped_gemm": True,
    "moe_token_dispatcher_type": "alltoall",
    "moe_permute_fusion": True,
    "moe_shared_expert_overlap": True,
}


@dataclass(frozen=True, slots=True)
class Experts:
    """Everything of experts, where the pattern has any: HF's configs carry these fields even where it has none."""

    hf: tuple[str, ...] = field(
        default=(
            *(name for codec in _EXPERTS for name in codec.hf),
            "moe_latent_size",
            "norm_topk_prob",
            "n_shared_experts",
        ),
        init=False,
    )
    mcore: tuple[str, ...] = field(
        default=(*(name for codec in _EXPERTS for name in codec.mcore), "moe_latent_size", *_ROUTER), init=False
    )

    def to_mcore(self, config: Record) -> dict[str, object]:
        if "E" not in pattern_of(config):
            return {}
        for name, value in (("norm_topk_prob", True), ("n_shared_experts", 1)):
            if config.get(name) not in (None, value):
                raise config.unsupported(name, repr(value), "Megatron-Core's layers of these experts know no other.")
        latent = None if config.get("moe_latent_size") is None else config.positive("moe_latent_size")
        values: dict[str, object] = {"moe_latent_size": latent, **_ROUTER}
        for codec in _EXPERTS:
            values |= codec.to_mcore(config)
        return values

    def to_hf(self, values: Record) -> dict[str, object]:
        if values.get("num_moe_experts") is None:
            return {}
        config: dict[str, object] = {"moe_latent_size": values.get("moe_latent_size")}
        for codec in _EXPERTS:
            config |= codec.to_hf(values)
        return config


def hybrid_sizes(values: Record) -> Sizes:
    """Attention's and the MLPs', and Mamba's: inner channels, and one state a group for B and for C."""
    named = dict(sizes(values))
    inner = values.positive("mamba_num_heads") * values.positive("mamba_head_dim")
    state = values.positive("mamba_num_groups") * values.positive("mamba_state_dim")
    named |= {"mamba_heads": values.positive("mamba_num_heads"), "inner": inner, "state": state}
    named |= {"twice_inner": 2 * inner, "inner_and_state": inner + state, "conv": inner + 2 * state}
    named |= {"before_c": 2 * inner + state, "before_dt": 2 * inner + 2 * state}
    named |= {"in_proj": 2 * inner + 2 * state + values.positive("mamba_num_heads")}
    return named | {"expert_in": values.integer("moe_latent_size", values.positive("hidden_size"))}


def _in_proj(letter: str, start: str | int, rows: str) -> Rule:
    return Rule(
        hf=(HFTensor(MIXER + "in_proj.weight", ("in_proj", "hidden")),),
        mcore=OF_MCORE + f"mixer.in_proj.weight.{letter}",
        layout=Rows(start, rows),
        layers=mamba_layers,
    )


def _conv(letter: str, start: str | int, rows: str) -> tuple[Rule, Rule]:
    weight, bias = (HFTensor(MIXER + "conv1d.weight", ("conv", 1, 4)), HFTensor(MIXER + "conv1d.bias", ("conv",)))
    mcore = OF_MCORE + "mixer.conv1d."
    return (
        Rule(hf=(weight,), mcore=f"{mcore}weight.{letter}", layout=Rows(start, rows), layers=mamba_layers),
        Rule(hf=(bias,), mcore=f"{mcore}bias.{letter}", layout=Rows(start, rows), layers=mamba_layers),
    )


def _one(hf: str, shape: tuple[str, ...], mcore: str, layers: Layers) -> Rule:
    return Rule(hf=(HFTensor(LAYER + hf, shape),), mcore=OF_MCORE + mcore, layers=layers)


MAMBA = (
    _one("norm.weight", ("hidden",), "mixer.in_proj.layer_norm_weight", mamba_layers),
    _in_proj("z", 0, "inner"),
    _in_proj("x", "inner", "inner"),
    _in_proj("B", "twice_inner", "state"),
    _in_proj("C", "before_c", "state"),
    _in_proj("dt", "before_dt", "mamba_heads"),
    *_conv("x", 0, "inner"),
    *_conv("B", "inner", "state"),
    *_conv("C", "inner_and_state", "state"),
    _one("mixer.A_log", ("mamba_heads",), "mixer.A_log", mamba_layers),
    _one("mixer.D", ("mamba_heads",), "mixer.D", mamba_layers),
    _one("mixer.dt_bias", ("mamba_heads",), "mixer.dt_bias", mamba_layers),
    _one("mixer.norm.weight", ("inner",), "mixer.norm.weight", mamba_layers),
    _one("mixer.out_proj.weight", ("hidden", "inner"), "mixer.out_proj.weight", mamba_layers),
)

ATTENTION = (
    _one("norm.weight", ("hidden",), "self_attention.linear_qkv.layer_norm_weight", attention_layers),
    Rule(
        hf=(
            HFTensor(MIXER + "q_proj.weight", ("q_rows", "hidden")),
            HFTensor(MIXER + "k_proj.weight", ("kv_rows", "hidden")),
            HFTensor(MIXER + "v_proj.weight", ("kv_rows", "hidden")),
        ),
        mcore=OF_MCORE + "self_attention.linear_qkv.weight",
        layout=QueryGroups(),
        layers=attention_layers,
    ),
    _one("mixer.o_proj.weight", ("hidden", "q_rows"), "self_attention.linear_proj.weight", attention_layers),
)

MLP = (
    _one("norm.weight", ("hidden",), "mlp.linear_fc1.layer_norm_weight", mlp_layers),
    _one("mixer.up_proj.weight", ("ffn", "hidden"), "mlp.linear_fc1.weight", mlp_layers),
    _one("mixer.down_proj.weight", ("hidden", "ffn"), "mlp.linear_fc2.weight", mlp_layers),
)


def latent_experts(config: Record) -> bool:
    """Experts work in a space of their own."""
    return config.get("moe_latent_size") is not None


_IN_LATENTS, _OUT_OF_LATENTS = "fc1_latent_proj.weight", "fc2_latent_proj.weight"
MOE = (
    _one("norm.weight", ("hidden",), "pre_mlp_layernorm.weight", moe_layers),
    _one("mixer.gate.weight", ("experts", "hidden"), "mlp.router.weight", moe_layers),
    _one("mixer.gate.e_score_correction_bias", ("experts",), "mlp.router.expert_bias", moe_layers),
    Rule(
        hf=(HFTensor(MIXER + "experts.{expert}.up_proj.weight", ("moe_ffn", "expert_in")),),
        mcore=EXPERTS_OF_MCORE + "linear_fc1.weight",
        layers=moe_layers,
    ),
    Rule(
        hf=(HFTensor(MIXER + "experts.{expert}.down_proj.weight", ("expert_in", "moe_ffn")),),
        mcore=EXPERTS_OF_MCORE + "linear_fc2.weight",
        layers=moe_layers,
    ),
    _one(
        "mixer.shared_experts.up_proj.weight",
        ("shared_ffn", "hidden"),
        "mlp.shared_experts.linear_fc1.weight",
        moe_layers,
    ),
    _one(
        "mixer.shared_experts.down_proj.weight",
        ("hidden", "shared_ffn"),
        "mlp.shared_experts.linear_fc2.weight",
        moe_layers,
    ),
    Rule(
        hf=(HFTensor(MIXER + _IN_LATENTS, ("expert_in", "hidden")),),
        mcore=OF_MCORE + "mlp." + _IN_LATENTS,
        layers=moe_layers,
        when=latent_experts,
    ),
    Rule(
        hf=(HFTensor(MIXER + _OUT_OF_LATENTS, ("hidden", "expert_in")),),
        mcore=OF_MCORE + "mlp." + _OUT_OF_LATENTS,
        layers=moe_layers,
        when=latent_experts,
    ),
)

EMBEDDINGS = (
    Rule(hf=(HFTensor("backbone.embeddings.weight", ("vocab", "hidden")),), mcore="embedding.word_embeddings.weight"),
    Rule(hf=(HFTensor("backbone.norm_f.weight", ("hidden",)),), mcore="decoder.final_norm.weight"),
    Rule(hf=(HFTensor("lm_head.weight", ("vocab", "hidden")),), mcore="output_layer.weight"),
)

_UNBIASED = "Megatron-Core's Mamba mixer and this page know no biases here; no released model has any."
_FIXED_IN_MCORE = "Megatron-Core's Mamba mixer fixes this value."
_INITIALIZES = "shapes how time steps are initialized, not how they are computed"
_NO_MTP = "of multi-token prediction, which HF's class does not compute; the plan refuses its tensors by name"

NEMOTRON_H = Family(
    name="nemotron_h",
    page="worker/mapping/families/nemotron_h.py",
    model_types=("nemotron_h",),
    architectures=("NemotronHForCausalLM",),
    features=("Mamba-2", "MoE", "latent experts", "expert bias", "shared experts", "squared ReLU", "GQA"),
    fields=(
        same("hidden_size"),
        Renamed("intermediate_size", "ffn_hidden_size", int, 21504),
        LayerPattern(),
        same("num_attention_heads", int, 32),
        HeadSize(default=128),
        KeyValueHeads(default=8),
        Vocabulary(),
        Activation(("relu2",), "mlp_hidden_act"),
        Precision(),
        Storage(),
        Only("layer_norm_epsilon", 1e-5, _FIXED_IN_MCORE),
        Renamed("initializer_range", "init_method_std", float, 0.02),
        same("attention_dropout", float, 0.0),
        same("hidden_dropout", float, 0.0),
        Only("tie_word_embeddings", False, "HF's class keeps an output layer of its own all the same."),
        Renamed("max_position_embeddings", "seq_length", int, 4096),
        Renamed("residual_in_fp32", "fp32_residual_connection", bool, False),
        Renamed("mamba_num_heads", "mamba_num_heads", int, 128),
        Renamed("mamba_head_dim", "mamba_head_dim", int, 64),
        Renamed("ssm_state_size", "mamba_state_dim", int, 128),
        Renamed("n_groups", "mamba_num_groups", int, 8, also=("mamba_n_groups",)),
        Renamed("chunk_size", ONLY_HF + "chunk_size", int, 128, also=("mamba_chunk_size",)),
        Renamed("time_step_min", ONLY_HF + "time_step_min", float, 0.001),
        Only("conv_kernel", 4, _FIXED_IN_MCORE),
        Only("use_conv_bias", True, _FIXED_IN_MCORE),
        Only("mamba_hidden_act", "silu", _FIXED_IN_MCORE),
        Only("use_bias", False, _UNBIASED),
        Only("mamba_proj_bias", False, _UNBIASED),
        Only("attention_bias", False, _UNBIASED),
        Only("mlp_bias", False, _UNBIASED),
        Only("sliding_window", None, "HF's class reads no window."),
        Experts(),
        Fixed(
            {
                **{name: value for name, value in CONSTRUCTION.values.items() if name != "hidden_dropout"},
                "share_embeddings_and_output_weights": False,
                "position_embedding_type": "none",
                "gated_linear_unit": False,
                "add_bias_linear": False,
                "add_qkv_bias": False,
                "layernorm_epsilon": 1e-5,
                "bias_activation_fusion": False,  # upstream fuses no squared ReLU with a bias
                "apply_query_key_layer_scaling": False,
                "attention_backend": "flash",
                "first_last_layers_bf16": True,
                "is_hybrid_model": True,
            }
        ),
    ),
    ignored=(
        *WITHOUT_EFFECT,
        Ignored("attention_head_dim", "an older spelling of head_dim beside it; HF's class reads head_dim"),
        Ignored("auto_map", "names remote code; HF's own class is used"),
        Ignored("expand", "HF's class takes the inner size from mamba_num_heads and mamba_head_dim"),
        Ignored("mamba_ssm_cache_dtype", "the precision of states kept between generated tokens"),
        Ignored("moe_shared_expert_overlap", "when shared experts run, not what they compute"),
        Ignored("mtp_hybrid_override_pattern", _NO_MTP, other="*-"),
        Ignored("mtp_layers_block_type", _NO_MTP),
        Ignored("norm_eps", "HF's class reads layer_norm_epsilon"),
        Ignored("num_logits_to_keep", "how many positions generation computes logits of"),
        Ignored("num_nextn_predict_layers", _NO_MTP),
        Ignored("output_router_logits", "chooses what forward() returns beside the logits"),
        Ignored("partial_rotary_factor", "the model has no rotary positions"),
        Ignored("rescale_prenorm_residual", "shapes initialization"),
        Ignored("rms_norm_eps", "HF's class reads layer_norm_epsilon"),
        Ignored("rope_theta", "the model has no rotary positions"),
        Ignored("time_step_floor", _INITIALIZES),
        Ignored("time_step_limit", "HF's class takes time_step_min and no upper limit"),
        Ignored("time_step_max", _INITIALIZES),
        Ignored("time_step_rank", "HF's class does not read it"),
        Ignored("use_mamba_kernels", "chooses kernels, not the mathematics"),
    ),
    nulls=(*NULLS, "layers_block_type", "moe_latent_size", "sliding_window"),
    sizes=hybrid_sizes,
    rules=(*EMBEDDINGS, *MAMBA, *ATTENTION, *MLP, *MOE),
    model="hybrid",
    unproven=(
        "time steps below time_step_min: HF's class raises them to it, Megatron-Core computes with them as they are",
    ),
)
