"""How many parameters a model has where: by layer, and by how ranks share them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from ..mapping.bindings import Binding
from ..mapping.blocks import Address
from ..mapping.record import Record

Share = Literal["cut", "whole", "expert cut", "expert whole", "vocabulary"]
"""Cut by TP, held by every rank of it; the same of experts, by ETP and EP; rows of the vocabulary, padded and cut."""
Place = int | Literal["embedding", "end", "mtp"]
"""A decoder layer's number; before the first, behind the last, or multi-token prediction."""

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
_STACK = "decoder.layers."
_BUFFER = ".expert_bias"
"""No parameter: the router moves it by itself."""
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_BY_COLUMN = re.compile(
    r"\.(linear_qkv|linear_fc1|linear_q_proj|linear_q_up_proj|linear_kv_up_proj|in_proj|eh_proj)\.(weight|bias)(\.\w+)?$"
)
_BY_ROW = re.compile(r"\.(linear_proj|linear_fc2|out_proj)\.weight$")
_OF_HEADS = re.compile(r"\.(softmax_offset|A_log|D|dt_bias|mixer\.norm\.weight|conv1d\.(weight|bias)(\.\w+)?)$")
_ALL_HEADS = re.compile(r"\.[qk]_layernorm\.weight$")
"""Norms that span all heads are cut as these are; norms of one head each rank has whole."""

_NONE: Mapping[Share, int] = {}


@dataclass(frozen=True, slots=True)
class Census:
    """Parameters by place, and at each by share."""

    parameters: Mapping[Place, Mapping[Share, int]]

    def at(self, places: Iterable[Place]) -> Mapping[Share, int]:
        """Of all these places together."""
        found: dict[Share, int] = {}
        for place in places:
            for share, count in self.parameters.get(place, _NONE).items():
                found[share] = found.get(share, 0) + count
        return found


def census(bound: Iterable[Binding], values: Record) -> Census:
    """Of a whole model's `bindings`, padding of the vocabulary aside; `values` are Megatron's."""
    counts: defaultdict[Place, Counter[Share]] = defaultdict(Counter)
    for binding in bound:
        name = binding.target.name
        if not name.endswith(_BUFFER):
            counts[place_of(binding.target)][share_of(name, values)] += prod(binding.shape)
    return Census(dict(counts))


def place_of(address: Address) -> Place:
    """Where the Megatron tensor of this address is, or a layer's module."""
    name = address.name
    if found := _LAYER.match(name):
        return int(found[1])
    if name.startswith(_STACK):
        return address.index[0]
    if name.startswith("mtp."):
        return "mtp"
    return "embedding" if name.startswith("embedding.") else "end"


def share_of(name: str, values: Record) -> Share:
    """How ranks share the Megatron tensor of this name, in a model of these values."""
    if name in _VOCABULARY:
        return "vocabulary"
    patterns = (_BY_COLUMN, _BY_ROW, _OF_HEADS, *((_ALL_HEADS,) if values.get("qk_norm_width") == "full" else ()))
    cut = any(pattern.search(name) for pattern in patterns)
    if ".experts." in name:
        return "expert cut" if cut else "expert whole"
    return "cut" if cut else "whole"
