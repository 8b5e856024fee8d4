"""The named sizes that rules speak of, read off Megatron's values; a family with others adds its own."""

from .layouts import Sizes
from .record import Record


def sizes(values: Record) -> Sizes:
    """Of attention with query groups and of MLPs, dense or of experts; all that these values have."""
    head, heads = values.positive("kv_channels"), values.positive("num_attention_heads")
    groups = values.positive("num_query_groups", heads)
    return {
        **common_sizes(values),
        "head": head,
        "heads": heads,
        "groups": groups,
        "q_rows": heads * head,
        "kv_rows": groups * head,
        "qkv_rows": (heads + 2 * groups) * head,
    }


def common_sizes(values: Record) -> Sizes:
    """What every decoder has, whatever its attention."""
    ffn = values.positive("ffn_hidden_size")
    named = {
        "layers": values.positive("num_layers"),
        "hidden": values.positive("hidden_size"),
        "vocab": values.positive("vocab_size"),
        "ffn": ffn,
        "gated_ffn": 2 * ffn,
    }
    if values.get("num_moe_experts") is not None:
        named |= {"experts": values.positive("num_moe_experts"), "moe_ffn": values.positive("moe_ffn_hidden_size", ffn)}
    if values.get("moe_shared_expert_intermediate_size") is not None:
        named["shared_ffn"] = values.positive("moe_shared_expert_intermediate_size")
    return named
