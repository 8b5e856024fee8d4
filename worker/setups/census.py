"""How many parameters a model has where: by layer, and by how ranks share them."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from ..mapping.bindings import Binding, Model, bindings

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


@dataclass(frozen=True, slots=True)
class Census:
    """Parameters by place and share."""

    parameters: Mapping[tuple[Place, Share], int]

    def at(self, place: Place) -> dict[Share, int]:
        return {share: count for (where, share), count in self.parameters.items() if where == place}

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def census(model: Model) -> Census:
    """Of the whole model, padding of the vocabulary aside."""
    counts: Counter[tuple[Place, Share]] = Counter()
    for binding in bindings(model):
        if binding.target.name.endswith(_BUFFER):
            continue
        counts[place_of(binding), share_of(binding.target.name)] += prod(binding.shape)
    return Census(dict(counts))


def place_of(binding: Binding) -> Place:
    name = binding.target.name
    if found := _LAYER.match(name):
        return int(found[1])
    if name.startswith(_STACK):
        return binding.target.index[0]
    if name.startswith("mtp."):
        return "mtp"
    return "embedding" if name.startswith("embedding.") else "end"


def share_of(name: str) -> Share:
    """How ranks share the Megatron tensor of this name."""
    if name in _VOCABULARY:
        return "vocabulary"
    cut = bool(_BY_COLUMN.search(name) or _BY_ROW.search(name) or _OF_HEADS.search(name))
    if ".experts." in name:
        return "expert cut" if cut else "expert whole"
    return "cut" if cut else "whole"
