"""What models are compared on: prompts of several lengths, none longer than the model takes."""

import pytest
import torch

from worker.verification.logits import figures, prompts_for


@pytest.mark.parametrize(("longest", "lengths"), [(256, [256, 102, 38, 7]), (20, [20, 8, 3, 1]), (1, [1, 1, 1, 1])])
def test_lengths_differ_as_far_as_the_model_takes_them(longest: int, lengths: list[int]) -> None:
    assert [prompt.shape for prompt in prompts_for(1000, longest)] == [(1, length) for length in lengths]


def test_ids_come_from_all_over_the_vocabulary() -> None:
    ids = torch.cat(prompts_for(1000, 256), dim=1)

    assert ids.min() < 20
    assert ids.max() == 999
    assert len(ids.unique()) > 250


def test_one_prompt_repeats_itself() -> None:
    [repeated] = prompts_for(1000, 256)[1]

    assert repeated[:34].tolist() == repeated[34:68].tolist() == repeated[68:102].tolist()


def test_figures_are_of_the_worst_place() -> None:
    one = torch.tensor([[0.0, 1.0, 3.0], [5.0, 0.0, 0.0]])
    other = torch.tensor([[0.0, 1.0, 3.0], [0.0, 5.0, 0.0]])

    assert figures(one, other) == {"max_abs_difference": 5, "range": 5, "cosine": 0, "top1_agreement": 0.5}
