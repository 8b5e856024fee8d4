"""Checkpoints of models whose layers are alike, with keys of their own for each layer: read and written as others."""

from pathlib import Path

import pytest

from tests.families.case import BY_NAME, Case, logits
from tests.families.test_direct_load import COMPARED, agreed
from tests.families.test_logits import TOLERANCE, difference
from tests.families.test_round_trip import tensors
from tests.families.workshop import Workshop
from tests.megatron.model import checkpoint_folder
from tests.megatron.ranks import Ranks
from tests.megatron.saving import ITERATION
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.jobs.spec import ExportSpec, ImportSpec

PER_LAYER = {"non_homogeneous_layers": True}
SINGLETON = {"singleton_local_shards": True}
LOADED = "tests.megatron.training:logits_after_load"
TP2, PP2, EP2 = {"tp_size": 2}, {"pp_size": 2}, {"ep_size": 2}


def train(
    workshop: Workshop, ranks: Ranks, case: Case, target: Path, content: dict[str, bool], sizes: dict[str, int]
) -> TorchDistFolder:
    """What Megatron's own program saves of the case's model, its optimizer beside it."""
    ranks.run(
        "tests.megatron.saving:save_as_trained",
        root=workshop.imported(case),
        target=target,
        optimizer_format="fully_reshardable",
        content=content,
        **{"tp_size": 1, "pp_size": 1, **sizes},
    )
    return TorchDistFolder.open(target / f"iter_{ITERATION:07d}")


def imported(workshop: Workshop, case: Case, target: Path) -> Path:
    """Our import, layer by layer."""
    workshop.run(ImportSpec(source=str(workshop.source(case)), target=str(target), layer_keys="per-layer"))
    return target


def exported(workshop: Workshop, case: Case, root: Path, target: Path) -> None:
    """Bit for bit, and read again by torch's own reader."""
    hf_config = str(workshop.source(case))
    workshop.run(ExportSpec(source=str(root), target=str(target), hf_config=hf_config, verify=("tensors",)))

    assert tensors(target) == tensors(workshop.source(case))


def loaded_directly(workshop: Workshop, ranks: Ranks, case: Case, folder: Path, sizes: dict[str, int]) -> None:
    """By our strategy as by upstream's."""
    cut = {"sp": 1, "etp_size": 2, **sizes} if sizes == TP2 else {"etp_size": 1, **sizes}
    for answer in ranks.run(COMPARED, root=workshop.imported(case), folder=folder, sizes=cut):
        agreed(answer)


@pytest.mark.parametrize("name", ["gqa", "qwen3-moe"])
def test_what_megatron_saved_layer_by_layer_exports_bit_for_bit(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, tmp_path: Path, name: str
) -> None:
    case = BY_NAME[name]

    saved = train(workshop, megatron_with_transformer_engine, case, tmp_path / "saved", PER_LAYER, {})

    assert "decoder.layers.1.self_attention.linear_proj.weight" in saved.tensors
    assert any(name.startswith("optimizer.") for name in saved.tensors)
    exported(workshop, case, tmp_path / "saved", tmp_path / "back")
    loaded_directly(workshop, megatron_with_transformer_engine, case, saved.folder, {})


@pytest.mark.parametrize("name", ["gqa", "qwen3-moe", "deepseek-v3"])
def test_what_megatron_saved_expert_by_expert_exports_bit_for_bit(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, tmp_path: Path, name: str
) -> None:
    case = BY_NAME[name]

    saved = train(workshop, megatron_with_transformer_engine, case, tmp_path / "saved", SINGLETON, {})

    assert any(name.startswith("decoder.") and name.endswith("linear_fc1.weight_v") for name in saved.tensors)
    exported(workshop, case, tmp_path / "saved", tmp_path / "back")
    loaded_directly(workshop, megatron_with_transformer_engine, case, saved.folder, {})


@pytest.mark.parametrize("name", ["gqa", "qwen3-moe"])
def test_megatron_loads_what_we_import_layer_by_layer(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, tmp_path: Path, name: str
) -> None:
    case = BY_NAME[name]

    root = imported(workshop, case, tmp_path / "mcore")

    assert "decoder.layers.1.self_attention.linear_proj.weight" in TorchDistFolder.open(root / "release").tensors
    [(_, ours)] = megatron_with_transformer_engine.run(LOADED, root=root, tokens=case.tokens)
    assert difference(ours, logits(workshop.source(case), case.tokens).numpy()) < TOLERANCE
    loaded_directly(workshop, megatron_with_transformer_engine, case, checkpoint_folder(root), {})
    exported(workshop, case, root, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [TP2, EP2, PP2], ids=["TP2", "EP2", "PP2"])
def test_two_ranks_load_what_we_import_layer_by_layer(
    workshop: Workshop, two_ranks_with_transformer_engine: Ranks, tmp_path: Path, sizes: dict[str, int]
) -> None:
    case = BY_NAME["qwen3-moe"]

    root = imported(workshop, case, tmp_path / "mcore")

    loaded_directly(workshop, two_ranks_with_transformer_engine, case, checkpoint_folder(root), sizes)


@pytest.mark.parametrize("content", [PER_LAYER, SINGLETON], ids=["per-layer", "singleton"])
def test_an_optimizer_saved_layer_by_layer_is_loaded(
    workshop: Workshop, megatron_with_transformer_engine: Ranks, tmp_path: Path, content: dict[str, bool]
) -> None:
    root, ranks = workshop.imported(BY_NAME["gqa"]), megatron_with_transformer_engine
    ranks.run("tests.megatron.trainers:saved", root=root, target=tmp_path / "saved", sizes={}, content=content)

    [(_, same, moment)] = ranks.run("tests.megatron.trainers:loaded", root=root, source=tmp_path / "saved", sizes={})

    assert any(name.startswith("optimizer.") for name in TorchDistFolder.open(tmp_path / "saved").tensors)
    assert "decoder.layers.1.self_attention.linear_proj.weight" in TorchDistFolder.open(tmp_path / "saved").tensors
    assert same
    assert moment == pytest.approx(0.05)  # one step of a gradient of 0.5 at beta1 = 0.9


@pytest.mark.slow
def test_the_checks_of_an_import_hold_layer_by_layer(workshop: Workshop, tmp_path: Path) -> None:
    source, target = str(workshop.source(BY_NAME["qwen3-moe"])), str(tmp_path / "mcore")

    workshop.run(ImportSpec(source=source, target=target, layer_keys="per-layer", verify=("tensors", "logits")))


@pytest.mark.slow
@pytest.mark.parametrize("content", [PER_LAYER, SINGLETON], ids=["per-layer", "singleton"])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("gqa", TP2), ("gqa", PP2), ("qwen3-moe", TP2), ("qwen3-moe", EP2), ("qwen3-moe", PP2)],
    ids=["gqa-TP2", "gqa-PP2", "qwen3-moe-TP2", "qwen3-moe-EP2", "qwen3-moe-PP2"],
)
def test_what_two_ranks_saved_layer_by_layer_exports_bit_for_bit(
    workshop: Workshop,
    two_ranks_with_transformer_engine: Ranks,
    tmp_path: Path,
    name: str,
    sizes: dict[str, int],
    content: dict[str, bool],
) -> None:
    case = BY_NAME[name]

    train(workshop, two_ranks_with_transformer_engine, case, tmp_path / "saved", content, sizes)

    exported(workshop, case, tmp_path / "saved", tmp_path / "back")
