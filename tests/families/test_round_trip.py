"""An export gives back HF's checkpoint bit for bit: of our import, and of what Megatron itself saved after training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.families.case import BY_NAME, Case, logits
from tests.families.selection import every_case
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.jobs.spec import ExportSpec

some_variants = pytest.mark.parametrize(
    "case", [BY_NAME[name] for name in ("gqa", "all-biases", "tied", "bfloat16", "mistral-yarn")], ids=str
)
trained = pytest.mark.parametrize("optimizer_format", ["fully_reshardable", "dp_reshardable"])


def tensors(folder: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Every tensor of an HF folder, bit for bit, as the safetensors library reads it."""
    read: dict[str, tuple[torch.dtype, tuple[int, ...], bytes]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert name not in read
            bits = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            read[name] = (tensor.dtype, tuple(tensor.shape), bits)
    return read


@every_case
def test_an_import_exports_bit_for_bit(workshop: Workshop, case: Case, target: Path) -> None:
    workshop.run(ExportSpec(source=str(workshop.imported(case)), target=str(target)))

    assert tensors(target) == tensors(workshop.source(case))


@every_case
def test_transformers_loads_an_export(workshop: Workshop, case: Case, target: Path) -> None:
    workshop.run(ExportSpec(source=str(workshop.imported(case)), target=str(target)))

    exported = logits(target, case.tokens)

    assert torch.equal(exported, logits(workshop.source(case), case.tokens))


@every_case
def test_without_an_hf_config_the_model_config_is_enough(
    workshop: Workshop, case: Case, target: Path, tmp_path: Path
) -> None:
    root = tmp_path / "mcore"
    shutil.copytree(workshop.imported(case), root, ignore=shutil.ignore_patterns("hf"))

    workshop.run(ExportSpec(source=str(root), target=str(target)))

    assert torch.equal(logits(target, case.tokens), logits(workshop.source(case), case.tokens))


def test_an_export_is_cut_into_shards_that_transformers_loads(workshop: Workshop, target: Path) -> None:
    case = BY_NAME["gqa"]

    spec = ExportSpec(source=str(workshop.imported(case)), target=str(target), max_shard_bytes=40_000)
    workshop.run(spec)

    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert tensors(target) == tensors(workshop.source(case))
    assert torch.equal(logits(target, case.tokens), logits(workshop.source(case), case.tokens))


@some_variants
@trained
def test_what_megatron_saved_exports_bit_for_bit(
    workshop: Workshop,
    megatron_with_transformer_engine: Ranks,
    case: Case,
    target: Path,
    tmp_path: Path,
    optimizer_format: str,
) -> None:
    _train(workshop, megatron_with_transformer_engine, case, tmp_path / "mcore", 1, 1, optimizer_format)

    _export(workshop, case, tmp_path / "mcore", target)

    assert tensors(target) == tensors(workshop.source(case))


@pytest.mark.slow
@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2)], ids=["TP2", "PP2"])
@some_variants
@trained
def test_what_two_megatron_ranks_saved_exports_bit_for_bit(
    workshop: Workshop,
    two_ranks: Ranks,
    case: Case,
    target: Path,
    tmp_path: Path,
    tp_size: int,
    pp_size: int,
    optimizer_format: str,
) -> None:
    _train(workshop, two_ranks, case, tmp_path / "mcore", tp_size, pp_size, optimizer_format)

    _export(workshop, case, tmp_path / "mcore", target)

    assert tensors(target) == tensors(workshop.source(case))


@pytest.mark.slow
@some_variants
def test_what_four_megatron_ranks_saved_exports_bit_for_bit(
    workshop: Workshop, four_ranks: Ranks, case: Case, target: Path, tmp_path: Path
) -> None:
    _train(workshop, four_ranks, case, tmp_path / "mcore", 2, 2, "fully_reshardable")

    _export(workshop, case, tmp_path / "mcore", target)

    assert tensors(target) == tensors(workshop.source(case))


def _train(
    workshop: Workshop, ranks: Ranks, case: Case, root: Path, tp_size: int, pp_size: int, optimizer_format: str
) -> None:
    """A checkpoint that Megatron's training program saves at `root`: its weights are the source's."""
    ranks.run(
        "tests.megatron.saving:save_as_trained",
        root=workshop.imported(case),
        target=root,
        tp_size=tp_size,
        pp_size=pp_size,
        optimizer_format=optimizer_format,
    )


def _export(workshop: Workshop, case: Case, root: Path, target: Path) -> None:
    """A trainer leaves no config that we know: the source's is given."""
    spec = ExportSpec(source=str(root), target=str(target), hf_config=str(workshop.source(case)))
    workshop.run(spec)
