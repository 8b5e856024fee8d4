"""Nemotron-3 8B, Nemotron-4 and Minitron: squared ReLU without a gate, zero-centred LayerNorm, partial rope."""

from dataclasses import replace

from ..attention import Biases, HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..partial_rope import PartialRope
from ..rules import Fill, HFTensor, Rule
from ..sizes import sizes
from .llama import (
    ATTENTION_BIASES,
    ATTENTION_FILLS,
    ATTENTION_WEIGHTS,
    CONSTRUCTION,
    DROPS,
    EMBEDDINGS,
    LAYER,
    MLP,
    MLP_FILLS,
    decoder_shape,
    mlp_biased,
)

OF_MCORE = "decoder.layers.{layer}."

NORM_BIASES = tuple(
    Rule(hf=(HFTensor(hf, ("hidden",)),), mcore=mcore)
    for hf, mcore in (
        (LAYER + "input_layernorm.bias", OF_MCORE + "self_attention.linear_qkv.layer_norm_bias"),
        (LAYER + "post_attention_layernorm.bias", OF_MCORE + "mlp.linear_fc1.layer_norm_bias"),
        ("model.norm.bias", "decoder.final_layernorm.bias"),
    )
)

UNGATED_MLP = (
    Rule(
        hf=(HFTensor(LAYER + "post_attention_layernorm.weight", ("hidden",)),),
        mcore=OF_MCORE + "mlp.linear_fc1.layer_norm_weight",
    ),
    Rule(hf=(HFTensor(MLP + "up_proj.weight", ("ffn", "hidden")),), mcore=OF_MCORE + "mlp.linear_fc1.weight"),
    Rule(hf=(HFTensor(MLP + "down_proj.weight", ("hidden", "ffn")),), mcore=OF_MCORE + "mlp.linear_fc2.weight"),
    Rule(hf=(HFTensor(MLP + "up_proj.bias", ("ffn",)),), mcore=OF_MCORE + "mlp.linear_fc1.bias", when=mlp_biased),
    Rule(hf=(HFTensor(MLP + "down_proj.bias", ("hidden",)),), mcore=OF_MCORE + "mlp.linear_fc2.bias", when=mlp_biased),
)


def _ungated(fill: Fill) -> Fill:
    shape = tuple("ffn" if size == "gated_ffn" else size for size in fill.shape)
    return replace(fill, shape=shape, like=fill.like.replace("gate_proj", "up_proj"))


_OF_ITS_OWN = frozenset({"rms_norm_eps", "initializer_range"})
"""Fields that HF's class names, or fills in, otherwise than Llama's."""

NEMOTRON = Family(
    name="nemotron",
    page="worker/mapping/families/nemotron.py",
    model_types=("nemotron",),
    architectures=("NemotronForCausalLM",),
    features=("GQA", "squared ReLU", "zero-centred LayerNorm", "partial rotary", "attention and MLP biases"),
    fields=(
        *(codec for codec in decoder_shape(activations=("relu2",)) if _OF_ITS_OWN.isdisjoint(codec.hf)),
        Renamed("initializer_range", "init_method_std", float, 0.0134),
        Renamed("norm_eps", "layernorm_epsilon", float, 1e-5),
        HeadSize(),
        KeyValueHeads(),
        Renamed("max_position_embeddings", "seq_length", int, 4096),
        Biases(),
        PartialRope(default=0.5),
        Fixed(
            {
                **CONSTRUCTION.values,
                "normalization": "LayerNorm",
                "layernorm_zero_centered_gamma": True,
                "gated_linear_unit": False,
                "bias_activation_fusion": False,  # upstream fuses no squared ReLU with a bias
            }
        ),
    ),
    ignored=WITHOUT_EFFECT,
    nulls=(*NULLS, "head_dim", "num_key_value_heads"),
    sizes=sizes,
    rules=(*EMBEDDINGS, *ATTENTION_WEIGHTS, *ATTENTION_BIASES, *UNGATED_MLP, *NORM_BIASES),
    fills=(*ATTENTION_FILLS, *map(_ungated, MLP_FILLS)),
    drops=DROPS,
)
