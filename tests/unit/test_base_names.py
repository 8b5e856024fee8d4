"""Names of base models that contradict each other, and names that only differ."""

import pytest

from worker.adapters.base_names import contradict

CACHED = "/home/me/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0123abcd"


@pytest.mark.parametrize(
    ("said", "known", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", "models:Llama-3.1-8B-Instruct", True),
        ("meta-llama/Llama-3.1-8B-Instruct", "/models/llama-3.1-8b/", True),
        ("HuggingFaceTB/SmolLM2-135M", "here:SmolLM2-135M-Instruct", True),
        ("mistralai/Mixtral-8x7B-v0.1", "/models/Mixtral-8x7B", True),
        ("meta-llama/Llama-3.1-8B", "/models/llama-3.1-8b-hf", False),
        ("unsloth/Llama-3.1-8B-bnb-4bit", "/models/Llama-3.1-8B", False),
        ("meta-llama/Meta-Llama-3.1-8B", "/models/llama-8b-mine", False),
        ("org/base-model", "/models/base", False),
        ("mistralai/Mistral-7B-v0.3", CACHED, True),
        ("meta-llama/Llama-3.1-8B-Instruct", CACHED, True),
        ("unsloth/llama-3.1-8b", CACHED, False),
        (CACHED, CACHED.replace("0123", "4567"), False),
        (CACHED, "/models/Llama-3.1-8B-Instruct", True),
    ],
)
def test_names_contradict_each_other_where_they_tell_models_apart(said: str, known: str, expected: bool) -> None:
    assert contradict(said, known) == expected
