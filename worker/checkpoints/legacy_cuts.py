"""How tensor-parallel ranks cut each of Megatron-Core's parameters: the axis, by the parameter's name."""

import re
from typing import Literal

Cut = Literal["whole", "rows", "columns"]
"""Every rank has all of it, or a share of its first axis, or of its second."""

_WEIGHT_AND_BIAS = r"\.(weight|bias)"

_CUTS: tuple[tuple[Cut, str], ...] = (
    ("rows", r"embedding\.word_embeddings\.weight"),
    ("rows", r"output_layer" + _WEIGHT_AND_BIAS),
    ("rows", r"self_attention\.linear_(qkv|q_proj|q_up_proj|kv_up_proj)" + _WEIGHT_AND_BIAS),
    ("rows", r"self_attention\.core_attention\.softmax_offset"),
    ("rows", r"mlp\.(shared_experts\.|experts\.experts\.)?linear_fc1" + _WEIGHT_AND_BIAS),
    ("columns", r"self_attention\.linear_proj\.weight"),
    ("columns", r"mlp\.(shared_experts\.|experts\.experts\.)?linear_fc2\.weight"),
    ("whole", r"self_attention\.linear_proj\.bias"),
    ("whole", r"mlp\.(experts\.experts\.)?linear_fc2\.bias"),
    # Transformer Engine's layers keep the latents whole on every rank ("duplicated").
    ("whole", r"self_attention\.linear_(q|kv)_down_proj\.weight"),
    ("whole", r"mlp\.router\.(weight|bias|expert_bias)"),
    ("whole", r"mlp\.shared_experts\.gate_weight"),
    ("whole", r"embedding\.position_embeddings\.weight"),
    ("whole", r"\w*norm[._](weight|bias)"),
)


def cut_of(name: str) -> Cut | None:
    """The cut of a parameter; None where no rule speaks of it."""
    return next((cut for cut, pattern in _CUTS if re.fullmatch(rf"(.*\.)?{pattern}", name)), None)
