"""OLMoE: as many key heads as queries or fewer, normalised weights or not."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, SHAPE

_SHAPE: dict[str, object] = {
    **{name: value for name, value in SHAPE.items() if name != "head_dim"},
    "num_experts": 6,
    "num_experts_per_tok": 3,
}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA) -> Case:
    return Case(name=name, model_type="olmoe", config={**_SHAPE, **changes}, control=control)


CASES = (
    _case("olmoe", {"num_key_value_heads": 4}),
    _case("olmoe-gqa", {"rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-3}),
    _case("olmoe-normalized", {"norm_topk_prob": True, "intermediate_size": 80}, {"norm_topk_prob": False}),
    _case("olmoe-tied-bfloat16", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
)
