"""Which models keep their layers in one stack, and which checkpoints do."""

import pytest

from worker.mapping.layer_sets import layer_keys_among, one_stack
from worker.mapping.record import Record


@pytest.mark.parametrize(
    ("values", "stacked"),
    [
        ({}, True),
        ({"moe_layer_freq": 1, "linear_attention_freq": None, "hetereogenous_dist_checkpoint": False}, True),
        ({"moe_layer_freq": 2}, False),
        ({"moe_layer_freq": [1, 1]}, False),
        ({"linear_attention_freq": 4}, False),
        ({"hybrid_layer_pattern": "M*"}, False),
        ({"hetereogenous_dist_checkpoint": True}, False),
    ],
    ids=str,
)
def test_unlike_layers_have_keys_of_their_own(values: dict[str, object], stacked: bool) -> None:
    assert one_stack(Record(values, "test")) is stacked


def test_a_checkpoints_keys_tell_which_they_are() -> None:
    beside = ("embedding.word_embeddings.weight", "optimizer.state.exp_avg.decoder.layers.0.mlp.linear_fc1.weight")

    assert layer_keys_among((*beside, "decoder.layers.mlp.linear_fc1.weight")) == "stacked"
    assert layer_keys_among((*beside, "decoder.layers.11.mlp.linear_fc1.weight")) == "per-layer"
