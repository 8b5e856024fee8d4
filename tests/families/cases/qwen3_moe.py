"""Qwen3-MoE: experts everywhere, and a dense layer first; normalised weights or not."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, SHAPE

_MOE: dict[str, object] = {
    "moe_intermediate_size": 48,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA) -> Case:
    return Case(name=name, model_type="qwen3_moe", config={**SHAPE, **_MOE, **changes}, control=control)


CASES = (
    _case("qwen3-moe", {}),
    _case("qwen3-moe-dense-first", {"mlp_only_layers": [0], "num_hidden_layers": 4}),
    _case("qwen3-moe-every-second", {"decoder_sparse_step": 2, "moe_intermediate_size": 40}),
    _case("qwen3-moe-not-normalized", {"norm_topk_prob": False}, {"norm_topk_prob": True}),
    _case("qwen3-moe-window", {"use_sliding_window": True, "sliding_window": 13}, {"sliding_window": 14}),
    _case("qwen3-moe-tied-bfloat16", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
)
