"""The named sizes that rules speak of, read off Megatron's values; a family with others adds its own."""

from .layer_sets import layer_count
from .layouts import Sizes
from .record import Record

_MOST_EXPERTS = 100_000
_MOST_ROWS = 2**28
"""Of a matrix, either way: larger ones have no place in a file."""


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
    ffn = _rows(values, "ffn_hidden_size")
    named = {
        "layers": layer_count(values),
        "hidden": _rows(values, "hidden_size"),
        "vocab": _rows(values, "vocab_size"),
        "ffn": ffn,
        "gated_ffn": 2 * ffn,
    }
    if values.get("num_moe_experts") is not None:
        named |= {"experts": _experts(values), "moe_ffn": _rows(values, "moe_ffn_hidden_size", ffn)}
    if values.get("moe_shared_expert_intermediate_size") is not None:
        named["shared_ffn"] = _rows(values, "moe_shared_expert_intermediate_size")
    return named


def _rows(values: Record, name: str, default: int | None = None) -> int:
    rows = values.positive(name, default)
    if rows > _MOST_ROWS:
        raise values.wrong(name, f"at most {_MOST_ROWS:,}")
    return rows


def _experts(values: Record) -> int:
    """BadInputError where there are more than a plan can be made for."""
    count = values.positive("num_moe_experts")
    if count > _MOST_EXPERTS:
        raise values.wrong("num_moe_experts", f"at most {_MOST_EXPERTS:,} experts")
    return count
