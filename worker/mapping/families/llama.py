"""Llama 2, 3 and 3.x, SmolLM2, and whatever else loads as LlamaForCausalLM."""

from dataclasses import replace

from ..activation import Activation
from ..attention import Biases, HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Field, Fixed, Ignored, Only, Renamed, same
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..layouts import QueryGroups
from ..precision import Precision
from ..quantization import Storage
from ..record import Record
from ..rope import Rope
from ..rules import Drop, Fill, HFTensor, Rule
from ..sizes import sizes
from ..vocabulary import Vocabulary

LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attn."
MLP = LAYER + "mlp."

# What the trainers' own recipes set for Llama; upstream's defaults are more conservative.
CONSTRUCTION = Fixed(
    {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "hidden_dropout": 0.0,
        "attention_softmax_in_fp32": False,
        "cross_entropy_loss_fusion": True,
        "deallocate_pipeline_outputs": True,
        "bias_activation_fusion": True,
        "masked_softmax_fusion": True,
        "persist_layer_norm": True,
        "bias_dropout_fusion": True,
        "apply_rope_fusion": True,
    }
)


def decoder_shape(
    *, eps: float = 1e-6, ties: bool = False, activations: tuple[str, ...] = ("silu",)
) -> tuple[Field, ...]:
    """Sizes, norms and precision of a decoder with `intermediate_size`; arguments are the HF class's own defaults."""
    return (
        same("hidden_size"),
        Renamed("intermediate_size", "ffn_hidden_size"),
        Renamed("num_hidden_layers", "num_layers"),
        same("num_attention_heads"),
        Vocabulary(),
        Activation(activations),
        Precision(),
        Storage(),
        Renamed("rms_norm_eps", "layernorm_epsilon", float, eps),
        Renamed("initializer_range", "init_method_std", float, 0.02),
        same("attention_dropout", float, 0.0),
        Renamed("tie_word_embeddings", "share_embeddings_and_output_weights", bool, ties),
    )


def tied(config: Record) -> bool:
    """The output layer is the embedding."""
    return config.boolean("tie_word_embeddings", False)


def untied(config: Record) -> bool:
    """The output layer has a weight of its own."""
    return not tied(config)


def attention_biased(config: Record) -> bool:
    """HF: q, k, v and o have biases."""
    return config.boolean("attention_bias", False)


def mlp_biased(config: Record) -> bool:
    """HF: gate, up and down have biases."""
    return config.boolean("mlp_bias", False)


def only_mlp_biased(config: Record) -> bool:
    """Megatron gives attention biases that HF lacks."""
    return mlp_biased(config) and not attention_biased(config)


def only_attention_biased(config: Record) -> bool:
    """Megatron gives the MLP biases that HF lacks."""
    return attention_biased(config) and not mlp_biased(config)


EMBEDDINGS = (
    Rule(
        hf=(HFTensor("model.embed_tokens.weight", ("vocab", "hidden")),),
        mcore="embedding.word_embeddings.weight",
    ),
    Rule(
        hf=(HFTensor("model.norm.weight", ("hidden",)),),
        mcore="decoder.final_layernorm.weight",
    ),
    Rule(
        hf=(HFTensor("lm_head.weight", ("vocab", "hidden")),),
        mcore="output_layer.weight",
        when=untied,
    ),
)

ATTENTION_WEIGHTS = (
    Rule(
        hf=(HFTensor(LAYER + "input_layernorm.weight", ("hidden",)),),
        mcore="decoder.layers.{layer}.self_attention.linear_qkv.layer_norm_weight",
    ),
    Rule(
        hf=(
            HFTensor(ATTENTION + "q_proj.weight", ("q_rows", "hidden")),
            HFTensor(ATTENTION + "k_proj.weight", ("kv_rows", "hidden")),
            HFTensor(ATTENTION + "v_proj.weight", ("kv_rows", "hidden")),
        ),
        mcore="decoder.layers.{layer}.self_attention.linear_qkv.weight",
        layout=QueryGroups(),
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "o_proj.weight", ("hidden", "q_rows")),),
        mcore="decoder.layers.{layer}.self_attention.linear_proj.weight",
    ),
)

MLP_WEIGHTS = (
    Rule(
        hf=(HFTensor(LAYER + "post_attention_layernorm.weight", ("hidden",)),),
        mcore="decoder.layers.{layer}.mlp.linear_fc1.layer_norm_weight",
    ),
    Rule(
        hf=(
            HFTensor(MLP + "gate_proj.weight", ("ffn", "hidden")),
            HFTensor(MLP + "up_proj.weight", ("ffn", "hidden")),
        ),
        mcore="decoder.layers.{layer}.mlp.linear_fc1.weight",
    ),
    Rule(
        hf=(HFTensor(MLP + "down_proj.weight", ("hidden", "ffn")),),
        mcore="decoder.layers.{layer}.mlp.linear_fc2.weight",
    ),
)

WEIGHTS = (*EMBEDDINGS, *ATTENTION_WEIGHTS, *MLP_WEIGHTS)

QK_NORMS = (
    Rule(
        hf=(HFTensor(ATTENTION + "q_norm.weight", ("head",)),),
        mcore="decoder.layers.{layer}.self_attention.q_layernorm.weight",
    ),
    Rule(
        hf=(HFTensor(ATTENTION + "k_norm.weight", ("head",)),),
        mcore="decoder.layers.{layer}.self_attention.k_layernorm.weight",
    ),
)

QKV_BIAS = Rule(
    hf=(
        HFTensor(ATTENTION + "q_proj.bias", ("q_rows",)),
        HFTensor(ATTENTION + "k_proj.bias", ("kv_rows",)),
        HFTensor(ATTENTION + "v_proj.bias", ("kv_rows",)),
    ),
    mcore="decoder.layers.{layer}.self_attention.linear_qkv.bias",
    layout=QueryGroups(),
)

ATTENTION_BIASES = (
    replace(QKV_BIAS, when=attention_biased),
    Rule(
        hf=(HFTensor(ATTENTION + "o_proj.bias", ("hidden",)),),
        mcore="decoder.layers.{layer}.self_attention.linear_proj.bias",
        when=attention_biased,
    ),
)

MLP_BIASES = (
    Rule(
        hf=(HFTensor(MLP + "gate_proj.bias", ("ffn",)), HFTensor(MLP + "up_proj.bias", ("ffn",))),
        mcore="decoder.layers.{layer}.mlp.linear_fc1.bias",
        when=mlp_biased,
    ),
    Rule(
        hf=(HFTensor(MLP + "down_proj.bias", ("hidden",)),),
        mcore="decoder.layers.{layer}.mlp.linear_fc2.bias",
        when=mlp_biased,
    ),
)

_EVERY_LINEAR = "Megatron's add_bias_linear gives every linear layer a bias; this model has none here"

ATTENTION_FILLS = (
    Fill(
        mcore="decoder.layers.{layer}.self_attention.linear_qkv.bias",
        shape=("qkv_rows",),
        like=ATTENTION + "q_proj.weight",
        why=_EVERY_LINEAR,
        when=only_mlp_biased,
    ),
    Fill(
        mcore="decoder.layers.{layer}.self_attention.linear_proj.bias",
        shape=("hidden",),
        like=ATTENTION + "o_proj.weight",
        why=_EVERY_LINEAR,
        when=only_mlp_biased,
    ),
)

MLP_FILLS = (
    Fill(
        mcore="decoder.layers.{layer}.mlp.linear_fc1.bias",
        shape=("gated_ffn",),
        like=MLP + "gate_proj.weight",
        why=_EVERY_LINEAR,
        when=only_attention_biased,
    ),
    Fill(
        mcore="decoder.layers.{layer}.mlp.linear_fc2.bias",
        shape=("hidden",),
        like=MLP + "down_proj.weight",
        why=_EVERY_LINEAR,
        when=only_attention_biased,
    ),
)

DROPS = (
    Drop(hf=ATTENTION + "rotary_emb.inv_freq", why="recomputed from rope_theta"),
    Drop(hf="lm_head.weight", why="tied: both sides use the embedding instead", when=tied),
)

LLAMA = Family(
    name="llama",
    page="worker/mapping/families/llama.py",
    model_types=("llama",),
    architectures=("LlamaForCausalLM",),
    features=("GQA", "tied embeddings", "attention and MLP biases", "rope: default, llama3, linear, yarn"),
    fields=(
        *decoder_shape(),
        HeadSize(),
        KeyValueHeads(),
        Renamed("max_position_embeddings", "seq_length", int, 2048),
        Biases(),
        Rope(),
        CONSTRUCTION,
        Only("rope_interleaved", False, "Interleaved rotary pairs need another row order of q and k."),
    ),
    ignored=(*WITHOUT_EFFECT, Ignored("is_llama_config", "a marker that no class reads")),
    nulls=(*NULLS, "head_dim", "num_key_value_heads"),
    sizes=sizes,
    rules=(*WEIGHTS, *ATTENTION_BIASES, *MLP_BIASES),
    fills=(*ATTENTION_FILLS, *MLP_FILLS),
    drops=DROPS,
)
