"""Checkpoints that Megatron saved with experts on ranks of their own: exported, they are the model bit for bit."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.families.case import BY_NAME
from tests.families.test_round_trip import tensors
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.jobs.spec import ExportSpec

EP2 = {"ep_size": 2, "etp_size": 1}
ETP2 = {"tp_size": 2, "sp": 1, "ep_size": 1, "etp_size": 2}
TP2_EP2 = {"tp_size": 2, "sp": 1, "ep_size": 2, "etp_size": 1}
PP2_EP2 = {"pp_size": 2, "ep_size": 2}
PP2_VPP2 = {"pp_size": 2, "vpp_size": 2}
PP2_VPP2_EP2 = {"pp_size": 2, "vpp_size": 2, "ep_size": 2}
EP2_ETP2 = {"tp_size": 2, "sp": 1, "ep_size": 2, "etp_size": 2}


def exported(workshop: Workshop, ranks: Ranks, name: str, sizes: dict[str, int], folder: Path) -> None:
    case = BY_NAME[name]
    saved = folder / "saved"
    ranks.run(
        "tests.megatron.trainers:saved_as_loaded",
        root=workshop.imported(case),
        target=saved / "iter_0000003",
        sizes=sizes,
    )
    (saved / "latest_checkpointed_iteration.txt").write_text("3")

    workshop.run(ExportSpec(source=str(saved), target=str(folder / "back"), hf_config=str(workshop.source(case))))

    assert tensors(folder / "back") == tensors(workshop.source(case))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [EP2, ETP2, TP2_EP2], ids=["EP2", "ETP2", "TP2-EP2"])
@pytest.mark.parametrize("name", ["qwen3-moe", "mixtral"])
def test_experts_of_two_ranks_export_bit_for_bit(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, tmp_path: Path, name: str, sizes: dict[str, int]
) -> None:
    exported(workshop, two_ranks_with_transformer_engine, name, sizes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [EP2], ids=["EP2"])
@pytest.mark.parametrize("name", ["deepseek-v3", "glm4-moe"])
def test_shared_experts_and_router_biases_of_two_ranks_export_bit_for_bit(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, tmp_path: Path, name: str, sizes: dict[str, int]
) -> None:
    exported(workshop, two_ranks_with_transformer_engine, name, sizes, tmp_path)


@pytest.fixture(scope="module")
def four_ranks_with_transformer_engine() -> Iterator[Ranks]:
    with closing(Ranks(4, transformer_engine=True)) as ranks:
        yield ranks


@pytest.mark.slow
def test_experts_of_four_ranks_export_bit_for_bit(
    workshop: Workshop, four_ranks_with_transformer_engine: Ranks, tmp_path: Path
) -> None:
    exported(workshop, four_ranks_with_transformer_engine, "qwen3-moe", EP2_ETP2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [EP2, PP2_VPP2, ETP2], ids=["EP2", "PP2-VPP2", "ETP2"])
def test_optimizers_of_experts_on_two_ranks_are_in_nobodys_way(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, tmp_path: Path, sizes: dict[str, int]
) -> None:
    trained(workshop, two_ranks_with_transformer_engine, sizes, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [PP2_EP2, PP2_VPP2_EP2, EP2_ETP2], ids=["PP2-EP2", "PP2-VPP2-EP2", "EP2-ETP2"])
def test_optimizers_of_experts_on_four_ranks_are_in_nobodys_way(
    workshop: Workshop, four_ranks_with_transformer_engine: Ranks, tmp_path: Path, sizes: dict[str, int]
) -> None:
    trained(workshop, four_ranks_with_transformer_engine, sizes, tmp_path)


def trained(workshop: Workshop, ranks: Ranks, sizes: dict[str, int], folder: Path) -> None:
    """A model whose first layer is dense and whose experts have an optimizer of their own, saved with their moments."""
    case, saved = BY_NAME["qwen3-moe-dense-first"], folder / "saved"

    answers = ranks.run(
        "tests.megatron.saving:save_stages_as_trained", root=workshop.imported(case), target=saved, sizes=sizes
    )
    workshop.run(ExportSpec(source=str(saved), target=str(folder / "back"), hf_config=str(workshop.source(case))))

    assert {chunks for chunks, _ in answers} == {sizes.get("vpp_size", 1)}
    assert {optimizers for _, optimizers in answers} == {2 if sizes.get("ep_size", 1) > 1 else 1}
    moments = {name for name in TorchDistFolder.open(saved).tensors if name.startswith("optimizer.")}
    assert any(".experts." in name for name in moments), sorted(moments)
    assert tensors(folder / "back") == tensors(workshop.source(case))
