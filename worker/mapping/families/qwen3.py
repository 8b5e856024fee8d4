"""Qwen3, dense: a norm on every query and key head."""

from ..attention import AttentionBiases, HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..rope import Rope
from ..sizes import sizes
from ..windows import UpperWindows
from .llama import ATTENTION_BIASES, CONSTRUCTION, DROPS, MLP_FILLS, QK_NORMS, WEIGHTS, decoder_shape

QWEN3 = Family(
    name="qwen3",
    page="worker/mapping/families/qwen3.py",
    model_types=("qwen3",),
    architectures=("Qwen3ForCausalLM",),
    features=("GQA", "q and k norms", "attention biases", "tied embeddings", "windows by layer", "rope: all of llama"),
    fields=(
        *decoder_shape(),
        HeadSize(default=128),
        KeyValueHeads(default=32),
        Renamed("max_position_embeddings", "seq_length", int, 32768),
        Fixed({"qk_layernorm": True}),
        AttentionBiases(),
        UpperWindows(),
        Rope(),
        CONSTRUCTION,
    ),
    ignored=WITHOUT_EFFECT,
    nulls=(*NULLS, "num_key_value_heads", "sliding_window", "layer_types"),
    sizes=sizes,
    rules=(*WEIGHTS, *QK_NORMS, *ATTENTION_BIASES),
    fills=MLP_FILLS,
    drops=DROPS,
)
