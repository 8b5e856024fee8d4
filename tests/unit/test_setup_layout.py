"""Stages that are written out: how the text is read, what Megatron-Core would assert, and what each stage holds."""

from typing import Any

import pytest

from tests.large_stand_ins import DEEPSEEK_V3, LLAMA_8B
from tests.trainer_runs import run_of
from worker.jobs.errors import BadInputError
from worker.jobs.setup_spec import Parallelism
from worker.setups.layout import chunks_of_layout, stages_of, with_its_chunks
from worker.setups.memory_estimate import estimate
from worker.setups.parallel_checks import refuse_impossible
from worker.setups.profiles import verl
from worker.setups.registry import profile_of


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("Ettt|(tt|)*2,m|L", ("Ettt", "tt", "tt", "m", "L")),
        ("E,t*3|tL", ("Ettt", "tL")),
        ("(|t)*2L", ("", "t", "tL")),
        ("Et||t*2L", ("Et", "", "ttL")),
        ("Et(t|t", None),
        ("Ext|L", None),
        ("Et*9999|L", None),
    ],
)
def test_a_layout_is_read_as_megatron_reads_it(text: str, stages: tuple[str, ...] | None) -> None:
    assert stages_of(text) == stages


def test_chunks_take_turns_among_stages() -> None:
    sizes = with_its_chunks(Parallelism(pp_size=2, pipeline_layout="Et|t*2||tL"))

    assert sizes.vpp_size == 2
    assert chunks_of_layout("Et|t*2||tL", 2) == ((range(1), range(3, 3)), (range(1, 3), range(3, 4)))


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"pipeline_layout": "E(t|L"}, "stages of E, t, m and L"),
        ({"pipeline_layout": "Et*16|t*15L"}, "32: decoder layers"),
        ({"pipeline_layout": "t*16|Et*16L"}, "E first and L last"),
        ({"pipeline_layout": "Et*16|t*16mL"}, "0: layers of multi-token prediction"),
        ({"pipeline_layout": "Et*16|t*8|t*8L"}, "pp_size above 1, times vpp_size"),
        ({"pipeline_layout": "Et*16|t*16L", "vpp_size": 2}, "times vpp_size"),
        ({"pipeline_layout": "Et*16|t*16L", "last_stage_layers": 8}, "none beside first_stage_layers"),
    ],
)
def test_what_megatron_would_assert_of_a_layout_is_said_before(sizes: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInputError, match=match):
        refuse_impossible(run_of(LLAMA_8B, parallelism=with_its_chunks(Parallelism(pp_size=2, **sizes))))


def test_multi_token_prediction_stands_behind_all_decoder_layers() -> None:
    sizes = Parallelism(pp_size=2, pipeline_layout="Et*30|mt*31L")

    with pytest.raises(BadInputError, match="all decoder layers before multi-token prediction"):
        refuse_impossible(run_of(DEEPSEEK_V3, parallelism=sizes))


def test_memory_is_counted_where_a_layout_puts_it() -> None:
    even = run_of(LLAMA_8B, parallelism=Parallelism(pp_size=4))
    asked = Parallelism(pp_size=4, pipeline_layout="Et*8|t*8|t*8|t*8L")
    alone = Parallelism(pp_size=4, pipeline_layout="E|t*16|t*16|L")

    ends = estimate(run_of(LLAMA_8B, parallelism=alone)).stages

    assert estimate(run_of(LLAMA_8B, parallelism=asked)) == estimate(even)
    assert [stage.layers for stage in ends] == [0, 16, 16, 0]
    rows = LLAMA_8B["vocab_size"] * LLAMA_8B["hidden_size"]
    assert (ends[0].parameters, ends[3].parameters) == (rows, rows + LLAMA_8B["hidden_size"])


def test_prediction_in_a_stage_of_its_own_is_counted_there() -> None:
    sizes = Parallelism(pp_size=4, pipeline_layout="Et*30|t*31|m|L")

    behind = estimate(run_of(DEEPSEEK_V3, parallelism=sizes)).stages

    assert [stage.layers for stage in behind] == [30, 31, 0, 0]
    assert behind[2].parameters > behind[3].parameters > 0


def test_trainers_are_told_the_layout() -> None:
    sizes = with_its_chunks(Parallelism(pp_size=2, pipeline_layout="Et*8|t*8|t*8|t*8L"))
    run = run_of(LLAMA_8B, parallelism=sizes)

    name = "+actor_rollout_ref.actor.megatron.override_transformer_config.pipeline_model_parallel_layout"
    assert dict(verl.overrides(run))[name] == "Et*8|t*8|t*8|t*8L"
    assert f"{name}='Et*8|t*8|t*8|t*8L'" in profile_of("verl").files(run)["verl_overrides.txt"].decode()
    for profile in ("megatron-lm", "slime"):
        text = b"".join(profile_of(profile).files(run).values()).decode()
        assert "--pipeline-model-parallel-layout 'Et*8|t*8|t*8|t*8L'\n" in text
        assert "--num-virtual-stages-per-pipeline-rank" not in text
    with pytest.raises(BadInputError, match="pipeline_layout"):
        profile_of("nemo-rl").files(run)
