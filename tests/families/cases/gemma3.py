"""Gemma 3: two rope bases, one scaled; windows by pattern and by list; both spellings of the config."""

from typing import Any

from tests.families.case import Case
from tests.families.cases.gemma import SHAPE_OF_GEMMA
from worker.mapping.windows import FULL, SLIDING


def ropes(full: float, sliding: float, **scaling: object) -> dict[str, object]:
    """A base for each kind of layer, and the full layers' scaling."""
    return {
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": full, **scaling},
            SLIDING: {"rope_type": "default", "rope_theta": sliding},
        }
    }


_LINEAR: dict[str, object] = {"rope_type": "linear", "factor": 4.0}
_SHAPE: dict[str, object] = {
    **SHAPE_OF_GEMMA,
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 24,
    "sliding_window": 13,
    "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
    **ropes(1000.0, 100.0, **_LINEAR),
}


def _old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 4 wrote it: a pattern, two names of bases, one scaling."""
    del config["layer_types"]
    by_type = config.pop("rope_parameters")
    theta, local = by_type[FULL].pop("rope_theta"), by_type[SLIDING]["rope_theta"]
    return config | {
        "sliding_window_pattern": 3,
        "rope_theta": theta,
        "rope_local_base_freq": local,
        "rope_scaling": by_type[FULL],
    }


def _case(name: str, changes: dict[str, object], control: dict[str, object], **options: Any) -> Case:
    config = {**_SHAPE, **changes}
    return Case(name=name, model_type="gemma3_text", config=config, control=control, zero_centered=True, **options)


CASES = (
    _case("gemma3", {}, ropes(1000.0, 200.0, **_LINEAR)),
    _case("gemma3-old-spelling", {}, {"sliding_window": 14}, respell=_old_spelling),
    _case("gemma3-unscaled", ropes(1234.5, 100.0), ropes(1234.5, 100.0, **_LINEAR)),
    _case("gemma3-all-full", {"layer_types": [FULL] * 4}, {"query_pre_attn_scalar": 25}),
    _case("gemma3-all-sliding", {"layer_types": [SLIDING] * 4}, ropes(1000.0, 200.0)),
    _case(
        "gemma3-softcap-untied",
        {"final_logit_softcapping": 5.0, "tie_word_embeddings": False, "num_key_value_heads": 1},
        {"final_logit_softcapping": 6.0},
    ),
    _case("gemma3-attention-bias", {"attention_bias": True}, {"sliding_window": 14}),
    _case("gemma3-bfloat16", {"dtype": "bfloat16"}, {"sliding_window": 14}),
)
