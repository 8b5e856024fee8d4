"""gpt-oss: square and oblong experts, yarn as it is released, windows in other layers, another clamp."""

from tests.families.case import Case
from tests.families.cases.llama import OTHER_THETA, PLAIN, SHAPE, yarn

_MOE: dict[str, object] = {
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 17,
    "swiglu_limit": 1.0,
}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA) -> Case:
    return Case(name=name, model_type="gpt_oss", config={**SHAPE, **_MOE, **changes}, control=control)


CASES = (
    _case("gpt-oss", {}, {"swiglu_limit": 1.5}),
    _case("gpt-oss-yarn-oblong", {"intermediate_size": 40, "num_key_value_heads": 1} | yarn(truncate=False), PLAIN),
    _case("gpt-oss-other-windows", {"layer_types": ["full_attention", "sliding_attention"]}, {"sliding_window": 18}),
    _case("gpt-oss-tied-bfloat16", {"tie_word_embeddings": True, "dtype": "bfloat16", "rms_norm_eps": 1e-2}),
)
