"""Qwen2 and Qwen2.5: Llama's tensors with biases on q, k and v alone, and windows in the upper layers."""

from ..attention import HeadSize, KeyValueHeads
from ..family import Family
from ..fields import Fixed, Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..rope import Rope
from ..sizes import sizes
from ..windows import UpperWindows
from .llama import CONSTRUCTION, DROPS, QKV_BIAS, WEIGHTS, decoder_shape

QWEN2 = Family(
    name="qwen2",
    page="worker/mapping/families/qwen2.py",
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    features=("GQA", "q, k, v biases", "tied embeddings", "windows by layer", "rope: default, llama3, linear, yarn"),
    fields=(
        *decoder_shape(),
        HeadSize(),
        KeyValueHeads(default=32),
        Renamed("max_position_embeddings", "seq_length", int, 32768),
        Fixed({"add_bias_linear": False, "add_qkv_bias": True}),
        UpperWindows(),
        Rope(),
        CONSTRUCTION,
    ),
    ignored=WITHOUT_EFFECT,
    nulls=(*NULLS, "num_key_value_heads", "sliding_window", "layer_types"),
    sizes=sizes,
    rules=(*WEIGHTS, QKV_BIAS),
    drops=DROPS,
)
