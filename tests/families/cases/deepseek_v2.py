"""DeepSeek-V2: greedy and group-limited routing, query rank or none, yarn, dense layers first."""

from typing import Any

from tests.families.case import Case
from tests.families.cases.deepseek_v3 import LOCAL, SHAPE
from tests.families.cases.llama import OTHER_THETA, yarn

_OF_V3 = ("num_nextn_predict_layers",)
_SHAPE: dict[str, object] = {name: value for name, value in SHAPE.items() if name not in _OF_V3} | {
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "n_group": None,
    "topk_group": None,
}
_GROUPS: dict[str, object] = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}


def _released(config: dict[str, Any]) -> dict[str, Any]:
    """With the fields of released configs that HF's class does not read."""
    return config | {"aux_loss_alpha": 0.002, "seq_aux": True}


def _case(name: str, changes: dict[str, object], control: dict[str, object] = OTHER_THETA, **options: Any) -> Case:
    config = {**_SHAPE, **changes}
    return Case(name=name, model_type="deepseek_v2", config=config, control=control, without_local=LOCAL, **options)


CASES = (
    _case("deepseek-v2", {}),
    _case("deepseek-v2-groups", _GROUPS, {"topk_group": 3}),
    _case("deepseek-v2-one-expert-a-group", _GROUPS | {"num_experts_per_tok": 2}, {"topk_group": 1}),
    _case(
        "deepseek-v2-lite",
        {"q_lora_rank": None, "intermediate_size": 80, "moe_intermediate_size": 40},
        respell=_released,
    ),
    _case("deepseek-v2-yarn", yarn(mscale=0.7, mscale_all_dim=0.7), yarn(mscale=0.7, mscale_all_dim=0.6)),
    _case("deepseek-v2-tied", {"tie_word_embeddings": True, "first_k_dense_replace": 2}),
)
