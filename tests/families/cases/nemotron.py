"""Nemotron: rope on half of each head, biases or none."""

from tests.families.case import Case
from tests.families.cases.llama import SHAPE

_SHAPE: dict[str, object] = {name: value for name, value in SHAPE.items() if name != "rms_norm_eps"} | {
    "norm_eps": 1e-3
}


def _rope(part: float, theta: float = 10000.0) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": part}}


_OTHER_THETA = _rope(0.5, 20000.0)


def _case(name: str, changes: dict[str, object], control: dict[str, object] = _OTHER_THETA) -> Case:
    return Case(
        name=name,
        model_type="nemotron",
        config={**_SHAPE, **_rope(0.5), **changes},
        control=control,
        zero_centered=True,
        without_local="Megatron's local norms know no zero-centred weights",
    )


CASES = (
    _case("nemotron", {}),
    _case("nemotron-biased", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    _case("nemotron-attention-bias", {"attention_bias": True, "intermediate_size": 80}),
    _case("nemotron-mlp-bias-tied", {"mlp_bias": True, "tie_word_embeddings": True}),
    _case("nemotron-quarter-rope", _rope(0.25) | {"norm_eps": 1e-2}, _rope(0.5)),
)
