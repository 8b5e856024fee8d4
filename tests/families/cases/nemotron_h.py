"""Nemotron-H: Mamba, attention, MLP and expert layers, with and without latent experts."""

from tests.families.case import VOCABULARY, Case

_SHAPE: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 48,
    "layers_block_type": ["linear_attention", "full_attention", "linear_attention", "mlp"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 16,
    # HF's class raises shorter steps to this, which Megatron's kernel does not: the page names it as unproven.
    "time_step_min": 1e-12,
    "max_position_embeddings": 128,
    "dtype": "float32",
}
_MOE: dict[str, object] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
}


def _case(name: str, changes: dict[str, object], control: dict[str, object]) -> Case:
    return Case(
        name=name,
        model_type="nemotron_h",
        config={**_SHAPE, **changes},
        control=control,
        without_local="Megatron-Core's hybrid layers are made of Transformer Engine's",
    )


CASES = (
    _case("nemotron-h", {}, {"num_attention_heads": 4, "n_groups": 4, "ssm_state_size": 4}),
    _case("nemotron-h-experts", _MOE, {"routed_scaling_factor": 1.6}),
    _case("nemotron-h-latent-experts", _MOE | {"moe_latent_size": 24}, {"routed_scaling_factor": 1.6}),
    _case(
        "nemotron-h-groups",
        _MOE | {"n_group": 3, "topk_group": 2, "num_experts_per_tok": 4},
        {"topk_group": 3},
    ),
    _case(
        "nemotron-h-wide-mqa",
        {"intermediate_size": 80, "num_key_value_heads": 1, "mamba_num_heads": 8, "mamba_head_dim": 8},
        {"n_groups": 4, "ssm_state_size": 4},
    ),
)
