"""Llama: head counts, ties, biases, dtypes, every rope there is, both spellings of the config."""

from typing import Any

from tests.families.case import VOCABULARY, Case

THETA = 10000.0
# hidden == intermediate, so that a transposed or swapped matrix still fits; heads that do not split the hidden size;
# an eps and weights large enough that the norms, attention and rope all show in the logits.
SHAPE: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def rope(kind: str, theta: float = THETA, **options: object) -> dict[str, object]:
    """`rope_parameters` of one kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **options}}


def yarn(**options: float) -> dict[str, object]:
    """Yarn, its original length within the sequences."""
    return rope("yarn", factor=4.0, original_max_position_embeddings=32, **options)


PLAIN = rope("default")
OTHER_THETA = rope("default", 2 * THETA)

# Their original length is far beyond these sequences; the theta is small enough for the scaled waves to show.
_LLAMA3 = {"max_position_embeddings": 131072} | rope(
    "llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


def _old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote it: `rope_theta`, `rope_scaling`, `torch_dtype`."""
    options = config.pop("rope_parameters")
    return config | {
        "rope_theta": options.pop("rope_theta"),
        "rope_scaling": options,
        "torch_dtype": config.pop("dtype"),
    }


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA, **options: Any) -> Case:
    return Case(name=name, model_type="llama", config={**SHAPE, **changes}, control=control, **options)


CASES = (
    _case("gqa", {}),
    _case("mha", {"num_key_value_heads": 4}),
    _case("mqa", {"num_key_value_heads": 1}),
    _case("head-dim-from-hidden", {"head_dim": None}),
    _case("tied", {"tie_word_embeddings": True}),
    _case("attention-bias", {"attention_bias": True}),
    _case("mlp-bias", {"mlp_bias": True}),
    _case("all-biases", {"attention_bias": True, "mlp_bias": True}),
    _case("fractional-theta", rope("default", 1234.5), rope("default", 1234.0)),
    _case("wide", {"intermediate_size": 80}),
    _case("eps", {"rms_norm_eps": 1e-2}, {"rms_norm_eps": 1e-3}),
    _case("bfloat16", {"dtype": "bfloat16"}),
    _case("float16", {"dtype": "float16"}),
    _case("sharded", {}, max_shard_size="40KB"),
    _case("llama3", _LLAMA3, PLAIN),
    _case("llama3-old-spelling", _LLAMA3, PLAIN, respell=_old_spelling),
    _case("linear", rope("linear", factor=4.0), PLAIN),
    _case("yarn", yarn(), PLAIN),
    _case("yarn-betas", yarn(beta_fast=20.0, beta_slow=2.0), yarn()),
    _case("yarn-not-truncated", yarn(truncate=False), yarn()),
    _case("yarn-attention-factor", yarn(attention_factor=1.5), yarn()),
    _case("yarn-mscales", yarn(mscale=0.7, mscale_all_dim=0.4), yarn()),
    _case("yarn-one-mscale", yarn(mscale=0.7), PLAIN),
)
