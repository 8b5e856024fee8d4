"""What a rank is estimated to hold: each term of weights, gradients, optimizer and activations."""

from typing import Any

import pytest

from tests.families.case import BY_NAME
from tests.large_stand_ins import LLAMA_8B, QWEN3_235B
from tests.trainer_runs import run_of
from worker.adapters.fresh import FreshAdapter
from worker.integration.peft import Peft, PeftType
from worker.jobs.setup_spec import DdpSettings, Parallelism, PeftSettings
from worker.setups.memory_estimate import StageMemory, estimate
from worker.setups.trainer_run import TrainerRun


def run_of_case(name: str, **fields: Any) -> TrainerRun:
    case = BY_NAME[name]
    return run_of({"model_type": case.model_type, **case.config, **fields.pop("changes", {})}, **fields)


def test_full_training_of_8b_takes_what_everybody_says() -> None:
    """2 bytes of weights, 4 of gradients and 12 of optimizer for each of 8.03e9 parameters."""
    run = run_of(LLAMA_8B, sequence_length=4096, ddp=DdpSettings(use_distributed_optimizer=False))

    most = estimate(run).most

    assert most.parameters == 8_030_261_248
    assert most.weights + most.gradients + most.optimizer == 18 * most.parameters


def test_activations_are_near_megatrons_own_estimate() -> None:
    """Which is that of selective recomputation, after ffn / h alone (`megatron.training.theoretical_memory_usage`)."""
    run = run_of(LLAMA_8B, sequence_length=4096, recompute="selective")

    theirs = 32 * 4096 * 4096 * (18 + 4 * 14336 / 4096)

    assert estimate(run).most.activations == pytest.approx(theirs, rel=0.15)


def test_attention_keeps_what_v_is_a_slice_of_also_where_its_core_is_computed_again() -> None:
    """Measured on Megatron-LM's own program: autograd holds q and k after rope, q, k and v as projected, the output."""

    def of(recompute: str) -> int:
        return estimate(run_of(LLAMA_8B, sequence_length=4096, recompute=recompute)).most.activations

    queries, groups, hidden, ffn = 4096, 1024, 4096, 14336
    layer = 4 * hidden + 3 * queries + 3 * groups + 3 * ffn

    assert of("none") == of("selective") == 4096 * 2 * (32 * layer + 2 * hidden)


def test_the_distributed_optimizer_and_full_recomputation_take_less() -> None:
    plain = estimate(run_of(LLAMA_8B, sequence_length=4096, world_size=8)).most

    full = estimate(run_of(LLAMA_8B, sequence_length=4096, world_size=8, recompute="full")).most

    assert plain.optimizer == 12 * plain.parameters // 8
    assert full.activations < plain.activations / 5


def test_an_adapter_trains_a_thousandth() -> None:
    run = run_of(LLAMA_8B, peft=PeftSettings(dim=8, alpha=16), sequence_length=1024)

    most = estimate(run).most

    per_layer = 8 * ((4096 + 6144) + (4096 + 4096) + (4096 + 2 * 14336) + (14336 + 4096))
    assert most.gradients == 4 * 32 * per_layer
    assert most.weights == 2 * (8_030_261_248 + 32 * per_layer)


def test_expert_parallelism_shares_experts_alone() -> None:
    one = estimate(run_of(QWEN3_235B, parallelism=Parallelism(ep_size=1))).most
    eight = estimate(run_of(QWEN3_235B, parallelism=Parallelism(ep_size=8))).most

    experts = 94 * 128 * 3 * 4096 * 1536
    assert one.parameters == 235_093_634_560
    assert one.parameters - eight.parameters == experts - experts // 8


def fsdp(**overrides: object) -> DdpSettings:
    return DdpSettings(use_megatron_fsdp=True, overrides=overrides)


def test_fsdp_shares_what_its_strategy_says() -> None:
    """Two layers at a time are whole, of weights and of gradients where those are shared."""

    def most(**overrides: object) -> StageMemory:
        return estimate(run_of(LLAMA_8B, world_size=8, ddp=fsdp(**overrides))).most

    parameters = 8_030_261_248
    unit = (128256 + 1) * 4096  # the output layer, with the norm before it, is larger than a layer
    shares = {
        name: most(data_parallel_sharding_strategy=name)
        for name in ("no_shard", "optim", "optim_grads", "optim_grads_params")
    }
    assert {name: stage.optimizer for name, stage in shares.items()} == {
        "no_shard": 12 * parameters,
        "optim": 12 * parameters // 8,
        "optim_grads": 12 * parameters // 8,
        "optim_grads_params": 12 * parameters // 8,
    }
    assert shares["optim"].gradients == 4 * parameters
    assert shares["optim_grads"].gradients == 4 * (parameters // 8 + 2 * unit)
    assert shares["optim_grads"].weights == 2 * parameters
    assert shares["optim_grads_params"].weights == 2 * (parameters // 8 + 2 * unit)


def test_fsdp_shares_experts_among_those_who_hold_the_same() -> None:
    sizes = Parallelism(ep_size=8, world_size=16)
    whole = estimate(run_of(QWEN3_235B, parallelism=sizes)).most

    shared = estimate(run_of(QWEN3_235B, parallelism=sizes, ddp=fsdp())).most

    experts = 94 * 128 * 3 * 4096 * 1536 // 8
    unit = (151936 + 1) * 4096
    assert shared.weights == 2 * ((whole.parameters - experts) // 16 + experts // 2 + 2 * unit)


def test_optimizer_instances_hold_the_states_once_each() -> None:
    run = run_of(LLAMA_8B, world_size=8, ddp=DdpSettings(overrides={"num_distributed_optimizer_instances": 2}))

    most = estimate(run).most

    assert most.optimizer == 12 * most.parameters // 4


def test_gradients_in_half_precision_are_copied_for_the_optimizer() -> None:
    """20 bytes a parameter: Megatron-LM's docs/source/api-guide/dist_optimizer.md."""
    ddp = DdpSettings(use_distributed_optimizer=False, overrides={"grad_reduce_in_fp32": False})

    most = estimate(run_of(LLAMA_8B, ddp=ddp)).most

    assert most.weights + most.gradients + most.optimizer == 20 * most.parameters


def test_an_override_switches_the_distributed_optimizer_off() -> None:
    ddp = DdpSettings(overrides={"use_distributed_optimizer": False})

    most = estimate(run_of(LLAMA_8B, world_size=8, ddp=ddp)).most

    assert most.optimizer == 12 * most.parameters


@pytest.mark.parametrize("kind", ["lora", "canonical_lora", "dora"])
@pytest.mark.parametrize("targets", [(), ("linear_proj",)], ids=["usual", "few"])
@pytest.mark.parametrize("name", ["gqa", "qwen3-moe", "deepseek-v3"])
def test_adapters_have_the_parameters_that_are_written_of_them(
    name: str, kind: PeftType, targets: tuple[str, ...]
) -> None:
    """Against the tensors that a setup writes; DoRA's magnitudes are the factors' third tensor."""
    settings = PeftSettings(type=kind, dim=8, target_modules=targets)
    run = run_of_case(name, peft=settings)

    peft = Peft(**settings.model_dump(exclude={"init_adapter"}))
    fresh = FreshAdapter(dim=8, seed=1, dtype="F32", parts=peft.parts_of)
    written = sum(item.nbytes // 4 for item in fresh.items(run.model))
    magnitudes = 0
    if kind == "dora":
        rows = [item for item in fresh.items(run.model) if "linear_out" in item.name]
        magnitudes = sum(item.shape[0] for item in rows)

    assert estimate(run).most.gradients == 4 * (written + magnitudes)


def test_parts_of_a_fused_layer_have_factors_of_their_own() -> None:
    settings = PeftSettings(type="canonical_lora", dim=8, target_modules=("linear_q", "linear_v"))

    most = estimate(run_of(LLAMA_8B, peft=settings)).most

    assert most.gradients == 4 * 32 * 8 * ((4096 + 4096) + (4096 + 1024))


def activations(name: str, **fields: Any) -> int:
    return sum(stage.activations for stage in estimate(run_of_case(name, **fields)).stages)


def test_a_layer_of_multi_token_prediction_counts_as_one_more_and_its_projection() -> None:
    def of(depths: int, layers: int) -> int:
        changes = {"num_nextn_predict_layers": depths, "num_hidden_layers": layers}
        return activations("deepseek-v3-mtp", changes=changes)

    layer = of(0, 5) - of(0, 4)
    assert of(1, 4) - of(0, 4) == layer + 64 * 4 * 5 * BY_NAME["deepseek-v3-mtp"].config["hidden_size"]  # pyright: ignore[reportOperatorIssue]  # a number


def of_pattern(pattern: str, **fields: Any) -> int:
    kinds = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    changes = {"layers_block_type": [kinds[letter] for letter in pattern], "num_hidden_layers": len(pattern)}
    return activations("nemotron-h-latent-experts", changes=changes, **fields)


def test_each_kind_of_hybrid_layer_counts_as_what_it_is() -> None:
    values = run_of_case("nemotron-h-latent-experts").model.mcore
    hidden, heads = values.positive("hidden_size"), values.positive("mamba_num_heads")
    inner = heads * values.positive("mamba_head_dim")
    state = values.positive("mamba_num_groups") * values.positive("mamba_state_dim")

    mamba = of_pattern("MM") - of_pattern("M")

    assert mamba == 64 * 4 * (2 * hidden + (2 * inner + 2 * state + heads) + 2 * inner)
    assert of_pattern("M-") - of_pattern("M") == 64 * 4 * (2 * hidden + 2 * values.positive("ffn_hidden_size"))
    assert of_pattern("M*") - of_pattern("M") > 64 * 4 * 2 * hidden
    assert of_pattern("ME") - of_pattern("M") > of_pattern("M-") - of_pattern("M")


def test_delta_nets_count_otherwise_than_attention() -> None:
    def of(*kinds: str) -> int:
        names = [f"{kind}_attention" for kind in kinds]
        return activations("qwen3-next", changes={"layer_types": names, "num_hidden_layers": len(names)})

    values = run_of_case("qwen3-next").model.mcore
    keys, heads = values.positive("linear_num_key_heads"), values.positive("linear_num_value_heads")
    key, value = values.positive("linear_key_head_dim"), values.positive("linear_value_head_dim")
    projected = 2 * keys * key + 2 * heads * value + 2 * heads
    convolved = 4 * keys * key + heads * value
    rule = 2 * heads * key + heads * (value + 64 + 3)
    gated = 4 * heads * value
    attention = of("full", "full") - of("full")

    assert of("full", "linear") - of("full") - attention == 64 * 4 * (
        projected + convolved + rule + gated
    ) - attention_alone(values)


def attention_alone(values: Any) -> int:
    heads, width = values.positive("num_attention_heads"), values.positive("kv_channels")
    groups = values.positive("num_query_groups")
    return 64 * 4 * (heads * width * 5 + 3 * groups * width)


def test_ranks_that_share_experts_take_in_each_others_tokens() -> None:
    values = run_of_case("qwen3-moe").model.mcore
    sizes = {"tp_size": 2, "ep_size": 2}

    shared = activations("qwen3-moe", parallelism=Parallelism(**sizes, etp_size=2))
    apart = activations("qwen3-moe", parallelism=Parallelism(**sizes, etp_size=1))

    more = values.positive("moe_router_topk") * 2 * values.positive("hidden_size") // 2
    assert shared - apart == values.positive("num_layers") * 64 * 4 * more


def test_softcapped_attention_keeps_its_scores_unless_they_are_computed_again() -> None:
    changes = {"attn_logit_softcapping": None}
    scores = 64 * 64 * 4 * 8  # tokens, keys, heads, bytes

    kept = activations("gemma2") - activations("gemma2", changes=changes)
    again = activations("gemma2", recompute="selective") - activations("gemma2", recompute="selective", changes=changes)

    assert (kept, again) == (4 * scores, scores)


def test_adapters_keep_what_a_makes_and_dora_what_its_magnitudes_multiply() -> None:
    def of(kind: str | None) -> int:
        peft = None if kind is None else PeftSettings(type=kind, dim=8, target_modules=("linear_proj",))  # pyright: ignore[reportArgumentType]  # one of its types
        return estimate(run_of(LLAMA_8B, peft=peft)).most.activations

    assert of("lora") - of(None) == 32 * 64 * 2 * 8
    assert of("dora") - of("lora") == 32 * 64 * 2 * 4096 + 12 * 4096 * 4096
