"""The family of Megatron's values, told by the values alone: right, or refused."""

import pytest

from tests.families.case import CASES, Case
from tests.megatron.ranks import Ranks
from worker.jobs.errors import BadInputError
from worker.mapping.checkpoint_values import completed, model_of
from worker.mapping.family import ONLY_HF
from worker.mapping.record import Record
from worker.mapping.registry import family_of
from worker.mapping.training_args import values_of_args
from worker.mapping.upstream_classes import VARIANT_FIELDS

TOLD = {
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "glm4_moe",
    "deepseek_v2",
    "deepseek_v3",
    "nemotron",
}
"""Families that at least one of their cases tells."""


def megatron_values(case: Case) -> tuple[str, Record, Record]:
    """The family's name, its HF config as it stands for these values, and what Megatron's own classes hold of them."""
    hf = Record({"model_type": case.model_type, **case.config}, case.name)
    family = family_of(hf)
    values = family.to_mcore(hf)
    plain = {name: value for name, value in values.values.items() if not name.startswith(ONLY_HF)}
    return family.name, family.to_hf(values), completed(plain, "values")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_model_is_taken_for_what_it_is_or_refused(case: Case) -> None:
    name, hf, values = megatron_values(case)

    if _told(case) is None:
        with pytest.raises(BadInputError, match="--hf-config"):
            model_of(values)
        return

    model = model_of(values)
    same_but_in_name = {"mistral": "llama"}
    if model.family.name == same_but_in_name.get(name):
        assert values.get("window_size") is None
        return
    # Megatron's add_bias_linear gives every layer a bias; that HF lacked some of them is not in these values.
    unsaid = {"attention_bias", "mlp_bias"} if values.get("add_bias_linear") else set[str]()
    said = [{key: value for key, value in of.values.items() if key not in unsaid} for of in (model.hf, hf)]
    assert model.family.name == name
    assert said[0] == said[1]


def test_most_families_are_told() -> None:
    assert {told for case in CASES if (told := _told(case))} == TOLD


def _told(case: Case) -> str | None:
    try:
        return model_of(megatron_values(case)[2]).family.name
    except BadInputError:
        return None


@pytest.mark.parametrize("name", sorted(VARIANT_FIELDS))
def test_what_needs_our_own_layers_is_never_guessed(name: str) -> None:
    case = next(case for case in CASES if case.name == "gqa")
    _, _, values = megatron_values(case)

    with pytest.raises(BadInputError):
        model_of(Record({**values.values, name: 2.0}, "values"))


GATED = (
    "--swiglu --disable-bias-linear --normalization RMSNorm --position-embedding-type rope --num-layers 4 "
    "--hidden-size 64 --ffn-hidden-size 96 --num-attention-heads 4 --kv-channels 32 --vocab-size 1000 "
    "--max-position-embeddings 256 --norm-epsilon 1e-6 "
)
GROUPED = GATED + "--group-query-attention --num-query-groups 2 "
EXPERTS = "--num-experts 8 --moe-ffn-hidden-size 48 --moe-router-topk 4 "
SIGMOID = (
    "--moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-shared-expert-intermediate-size 48 "
    "--moe-router-topk-scaling-factor 2.5 --moe-layer-freq [0]*1+[1]*3 "
)
LATENTS = (
    "--multi-latent-attention --qk-layernorm --q-lora-rank 32 --kv-lora-rank 16 --qk-head-dim 16 "
    "--qk-pos-emb-head-dim 8 --v-head-dim 16 "
)
YARN = "--rotary-scaling-factor 40 --mscale 1.0 --mscale-all-dim 1.0 "
LINES = {
    "llama": GROUPED,
    "llama3": GROUPED + "--use-rope-scaling --rope-scaling-factor 32 --rotary-base 500000",
    "llama of all biases": GROUPED.replace("--disable-bias-linear ", ""),
    "mistral": GROUPED + "--window-size 127,0",
    "qwen2": GROUPED + "--add-qkv-bias",
    "qwen3": GROUPED + "--qk-layernorm --untie-embeddings-and-output-weights",
    "mixtral": GROUPED + EXPERTS,
    "qwen3_moe": GROUPED + EXPERTS + "--qk-layernorm --moe-layer-freq [0]*1+[1]*3",
    "glm4_moe": GROUPED
    + EXPERTS
    + SIGMOID
    + "--rotary-percent 0.5 --add-qkv-bias --moe-router-num-groups 1 --moe-router-group-topk 1",
    "deepseek_v3": GATED + EXPERTS + SIGMOID + LATENTS + YARN + "--moe-router-num-groups 4 --moe-router-group-topk 2",
    "deepseek_v3 of plain rope": GATED + EXPERTS + SIGMOID + LATENTS + "--rope-type rope",
    "nemotron": GATED.replace("--swiglu", "--squared-relu").replace("RMSNorm", "LayerNorm")
    + "--apply-layernorm-1p --rotary-percent 0.5",
}


@pytest.mark.parametrize("name", LINES)
def test_a_command_line_of_megatron_is_a_model(megatron: Ranks, name: str) -> None:
    [args] = megatron.run("tests.megatron.training:parsed", line=LINES[name])

    model = model_of(values_of_args(args, "args"))

    assert model.family.name == name.split(" ")[0].replace("llama3", "llama")
    assert (model.mcore.get("num_layers"), model.mcore.get("layernorm_epsilon")) == (4, 1e-6)
    assert model.hf.get("tie_word_embeddings") is ("--untie" not in LINES[name])
    assert model.hf.get("dtype") == "bfloat16"


@pytest.mark.parametrize(
    "line",
    [
        GATED + EXPERTS + SIGMOID + LATENTS + YARN + "--rope-type rope",
        GATED + EXPERTS + SIGMOID + LATENTS + "--moe-router-num-groups 4 --moe-router-group-topk 3",
        GROUPED + "--rotary-interleaved",
        GROUPED + "--qk-l2-norm",
        GROUPED + "--rotary-seq-len-interpolation-factor 4 --use-rope-scaling",
        GATED.replace("--position-embedding-type rope", ""),
        GATED.replace("--swiglu", ""),
    ],
    ids=lambda line: line[-50:],
)
def test_a_command_line_that_hf_cannot_say_is_refused(megatron: Ranks, line: str) -> None:
    [args] = megatron.run("tests.megatron.training:parsed", line=line)

    with pytest.raises(BadInputError, match="--hf-config"):
        model_of(values_of_args(args, "args"))
