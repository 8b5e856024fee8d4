"""Our loading strategy fills a model with what upstream's does, and reads nothing of a tensor through upstream's."""

import pickle
from pathlib import Path

import pytest

from tests.families.case import BY_NAME
from tests.families.workshop import Workshop
from tests.megatron.model import checkpoint_folder
from tests.megatron.ranks import RankError, Ranks

COMPARED = "tests.megatron.direct:compared"
TP2 = {"tp_size": 2, "sp": 1}
TP2_ETP1 = {"tp_size": 2, "sp": 1, "ep_size": 2, "etp_size": 1}
ETP2 = {"tp_size": 2, "sp": 1, "etp_size": 2}
EP2 = {"ep_size": 2, "etp_size": 1}
PP2 = {"pp_size": 2}


@pytest.mark.parametrize("name", ["gqa", "tied", "qwen3-moe", "mixtral", "deepseek-v3", "qwen3-moe-dense-first"])
def test_an_import_is_loaded_as_upstream_loads_it(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, name: str
) -> None:
    root = workshop.imported(BY_NAME[name])

    [answer] = megatron_with_transformer_engine.run(COMPARED, root=root, folder=checkpoint_folder(root), sizes={})

    agreed(answer)


def test_a_model_of_another_dtype_is_loaded_as_upstream_loads_it(
    workshop: Workshop, megatron_with_transformer_engine: Ranks
) -> None:
    root = workshop.imported(BY_NAME["qwen3-moe"])

    [answer] = megatron_with_transformer_engine.run(
        COMPARED, root=root, folder=checkpoint_folder(root), sizes={}, dtype="bfloat16"
    )

    agreed(answer)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [TP2, PP2], ids=["TP2", "PP2"])
@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_two_ranks_load_an_import_as_upstream_does(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, name: str, sizes: dict[str, int]
) -> None:
    root = workshop.imported(BY_NAME[name])

    for answer in two_ranks_with_transformer_engine.run(
        COMPARED, root=root, folder=checkpoint_folder(root), sizes=sizes
    ):
        agreed(answer)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [EP2, ETP2, TP2_ETP1, PP2], ids=["EP2", "ETP2", "TP2-EP2", "PP2"])
@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_two_ranks_load_experts_as_upstream_does(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, name: str, sizes: dict[str, int]
) -> None:
    root = workshop.imported(BY_NAME[name])

    for answer in two_ranks_with_transformer_engine.run(
        COMPARED, root=root, folder=checkpoint_folder(root), sizes=sizes
    ):
        agreed(answer)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "sizes"), [(ETP2, EP2), (EP2, ETP2), (PP2, TP2)], ids=str)
def test_what_megatron_saved_is_loaded_at_other_sizes(
    workshop: Workshop,
    two_ranks_with_transformer_engine: Ranks,
    target: Path,
    saved: dict[str, int],
    sizes: dict[str, int],
) -> None:
    root = workshop.imported(BY_NAME["qwen3-moe"])
    two_ranks_with_transformer_engine.run(
        "tests.megatron.trainers:saved_as_loaded", root=root, target=target, sizes=saved
    )

    for answer in two_ranks_with_transformer_engine.run(COMPARED, root=root, folder=target, sizes=sizes):
        agreed(answer)


def test_a_chunk_that_is_not_there_is_an_error(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, target: Path
) -> None:
    root, key = workshop.imported(BY_NAME["qwen3-moe"]), "decoder.layers.mlp.experts.experts.linear_fc2.weight"
    megatron_with_transformer_engine.run("tests.megatron.trainers:saved_as_loaded", root=root, target=target, sizes={})
    index = pickle.loads((target / ".metadata").read_bytes())
    lost = index.state_dict_metadata[key].chunks.pop()
    index.storage_data = {
        place: info for place, info in index.storage_data.items() if (place.fqn, place.offset) != (key, lost.offsets)
    }
    (target / ".metadata").write_bytes(pickle.dumps(index))

    with pytest.raises(RankError, match="chunks that do not make up"):
        megatron_with_transformer_engine.run("tests.megatron.direct:loaded_at_all", root=root, folder=target)


def agreed(answer: tuple[int, list[str], int]) -> None:
    """All of the model, bit for bit, and by our own reading."""
    count, different, read_by_upstream = answer
    assert count > 0
    assert different == []
    assert read_by_upstream == 0
