"""Mistral 7B and its kin: Llama's tensors, no biases, a sliding window."""

from ..attention import HeadSize, KeyValueHeads, NoBiases, SlidingWindow
from ..family import Family
from ..fields import Renamed
from ..hf_fields import NULLS, WITHOUT_EFFECT
from ..rope import Rope
from ..sizes import sizes
from .llama import CONSTRUCTION, DROPS, WEIGHTS, decoder_shape

MISTRAL = Family(
    name="mistral",
    page="worker/mapping/families/mistral.py",
    model_types=("mistral",),
    architectures=("MistralForCausalLM",),
    features=("GQA", "tied embeddings", "sliding window", "rope: default, llama3, linear, yarn"),
    fields=(
        *decoder_shape(),
        HeadSize(),
        KeyValueHeads(default=8),
        Renamed("max_position_embeddings", "seq_length", int, 4096 * 32),
        NoBiases(),
        SlidingWindow(default=4096),
        Rope(),
        CONSTRUCTION,
    ),
    ignored=WITHOUT_EFFECT,
    nulls=(*NULLS, "head_dim", "sliding_window"),
    sizes=sizes,
    rules=WEIGHTS,
    drops=DROPS,
)
