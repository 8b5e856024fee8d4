"""What each page says of values that no logits show: what trainers rely on, spelled out, not left to upstream."""

from pathlib import Path
from typing import Any

import pytest

from tests.families.case import CASES, Case
from tests.families.mutations import UNSEEN
from tests.families.workshop import Workshop
from worker.handlers.config import read_model

EVERYWHERE: dict[str, Any] = {
    "attention_softmax_in_fp32": False,
    "bias_dropout_fusion": True,
    "cross_entropy_loss_fusion": True,
    "deallocate_pipeline_outputs": True,
    "hidden_dropout": 0.0,
    "masked_softmax_fusion": True,
    "persist_layer_norm": True,
}
# Upstream fuses these activations alone with a bias, and latent attention's rope only in another order.
FUSED_ACTIVATIONS = ("silu", "gelu", "quick_gelu")
UNFUSED_ROPE = ("deepseek_v2", "deepseek_v3")
OF_EXPERTS: dict[str, Any] = {
    "moe_grouped_gemm": True,
    "moe_permute_fusion": True,
    "moe_token_dispatcher_type": "alltoall",
}
OF_SIGMOID_ROUTERS: dict[str, Any] = {
    "moe_router_bias_update_rate": 1e-3,
    "moe_router_dtype": "fp32",
    "moe_router_enable_expert_bias": True,
}

OF_HYBRIDS: dict[str, Any] = {
    "attention_backend": "flash",
    "first_last_layers_bf16": True,
    "is_hybrid_model": True,
}


def expected(family: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a model of the family with these values must say, whatever else it says."""
    table = EVERYWHERE | {
        "apply_rope_fusion": family not in UNFUSED_ROPE,
        "bias_activation_fusion": values["activation_func"] in FUSED_ACTIVATIONS,
    }
    if values.get("num_moe_experts"):
        table |= OF_EXPERTS
    if values.get("moe_router_score_function") == "sigmoid":
        table |= OF_SIGMOID_ROUTERS
    if "hybrid_layer_pattern" in values:
        table |= OF_HYBRIDS
    return table


def values_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page and Megatron's values of an HF folder."""
    model = read_model(folder)
    return model.family.name, dict(model.mcore.values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_trainers_rely_on_is_said(workshop: Workshop, case: Case) -> None:
    family, values = values_of(workshop.source(case))

    said = expected(family, values)

    assert {name: values.get(name) for name in said} == said


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_only_training_shows_comes_from_hf(workshop: Workshop, case: Case) -> None:
    _, values = values_of(workshop.source(case))
    config = case.config

    assert values["seq_length"] == config["max_position_embeddings"]
    assert values["init_method_std"] == config.get("initializer_range", DEFAULT_STD.get(case.model_type, 0.02))
    assert values["attention_dropout"] == 0.0


DEFAULT_STD = {"nemotron": 0.0134}


def test_every_value_that_the_mutants_leave_out_is_in_a_table_here() -> None:
    """The rest weighs training losses; their HF fields, where there are any, are held by the config law."""
    of_losses = {"moe_aux_loss_coeff", "moe_router_load_balancing_type", "mtp_loss_scaling_factor"}
    kernels = {"moe_shared_expert_overlap"}
    of_hf = {"seq_length", "init_method_std", "attention_dropout"}
    tables = (
        EVERYWHERE
        | OF_EXPERTS
        | OF_SIGMOID_ROUTERS
        | OF_HYBRIDS
        | {"apply_rope_fusion": 0, "bias_activation_fusion": 0}
    )

    assert tables.keys() | of_losses | kernels | of_hf >= UNSEEN
