"""Checkpoints as training runs leave them: described by args alone, or older than `torch_dist`, a pickle a rank."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.families.case import BY_NAME, VOCABULARY, Case
from tests.families.test_round_trip import tensors
from tests.families.workshop import Workshop
from tests.megatron.ranks import Ranks
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.jobs.errors import BadInputError
from worker.jobs.spec import ExportSpec

ITERATION = 10


def described(hf: Path) -> tuple[str, ...]:
    """A Llama's command line."""
    config = json.loads((hf / "config.json").read_text())
    sizes = {
        "num-layers": config["num_hidden_layers"],
        "hidden-size": config["hidden_size"],
        "ffn-hidden-size": config["intermediate_size"],
        "num-attention-heads": config["num_attention_heads"],
        "num-query-groups": config["num_key_value_heads"],
        "kv-channels": config["head_dim"],
        "vocab-size": config["vocab_size"],
        "max-position-embeddings": config["max_position_embeddings"],
        "norm-epsilon": config["rms_norm_eps"],
        "rotary-base": int(config["rope_parameters"]["rope_theta"]),
        "normalization": "RMSNorm",
        "position-embedding-type": "rope",
    }
    flags = ["group-query-attention", "swiglu", "disable-bias-linear"]
    flags += [] if config["tie_word_embeddings"] else ["untie-embeddings-and-output-weights"]
    pairs = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    return (*pairs, *(f"--{flag}" for flag in flags))


def save(
    workshop: Workshop,
    ranks: Ranks,
    case: Case,
    target: Path,
    tp_size: int,
    pp_size: int,
    description: tuple[str, ...] | None = None,
) -> None:
    ranks.run(
        "tests.megatron.saving:save_as_torch",
        root=workshop.imported(case),
        target=target,
        tp_size=tp_size,
        pp_size=pp_size,
        described=described(workshop.source(case)) if description is None else description,
    )


def config_of(hf: Path) -> dict[str, object]:
    """What changes weights or forward pass, and what is easily lost."""
    config = json.loads((hf / "config.json").read_text())
    names = ("model_type", "head_dim", "rope_parameters", "tie_word_embeddings", "rms_norm_eps", "vocab_size", "dtype")
    return {name: config[name] for name in names}


@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_one_rank_exports_bit_for_bit_by_its_args(
    workshop: Workshop, megatron: Ranks, target: Path, tmp_path: Path, name: str
) -> None:
    case = BY_NAME[name]
    save(workshop, megatron, case, tmp_path / "mcore", 1, 1)

    workshop.run(ExportSpec(source=str(tmp_path / "mcore"), target=str(target)), allow_pickle=True)

    assert tensors(target) == tensors(workshop.source(case))
    assert config_of(target) == config_of(workshop.source(case))


@pytest.mark.slow
@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2)], ids=["TP2", "PP2"])
@pytest.mark.parametrize("name", ["gqa", "mqa", "tied", "all-biases"])
def test_two_ranks_export_bit_for_bit(
    workshop: Workshop, two_ranks: Ranks, target: Path, tmp_path: Path, name: str, tp_size: int, pp_size: int
) -> None:
    case = BY_NAME[name]
    save(workshop, two_ranks, case, tmp_path / "mcore", tp_size, pp_size)

    spec = ExportSpec(source=str(tmp_path / "mcore"), target=str(target), hf_config=str(workshop.source(case)))
    workshop.run(spec, allow_pickle=True)

    assert tensors(target) == tensors(workshop.source(case))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa", "tied"])
def test_four_ranks_export_bit_for_bit(
    workshop: Workshop, four_ranks: Ranks, target: Path, tmp_path: Path, name: str
) -> None:
    case = BY_NAME[name]
    save(workshop, four_ranks, case, tmp_path / "mcore", 2, 2)

    workshop.run(ExportSpec(source=str(tmp_path / "mcore"), target=str(target)), allow_pickle=True)

    assert tensors(target) == tensors(workshop.source(case))


@pytest.mark.slow
@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "qwen3-moe-dense-first", "deepseek-v3"])
def test_experts_and_latents_export_bit_for_bit(
    workshop: Workshop,
    two_ranks_with_transformer_engine: Ranks,
    megatron_with_transformer_engine: Ranks,
    target: Path,
    tmp_path: Path,
    name: str,
    tp_size: int,
) -> None:
    case = BY_NAME[name]
    ranks = megatron_with_transformer_engine if tp_size == 1 else two_ranks_with_transformer_engine
    save(workshop, ranks, case, tmp_path / "mcore", tp_size, 1, ())

    spec = ExportSpec(source=str(tmp_path / "mcore"), target=str(target), hf_config=str(workshop.source(case)))
    workshop.run(spec, allow_pickle=True)

    assert tensors(target) == tensors(workshop.source(case))


def test_without_leave_to_read_pickles_it_is_refused(
    workshop: Workshop, megatron: Ranks, target: Path, tmp_path: Path
) -> None:
    save(workshop, megatron, BY_NAME["gqa"], tmp_path / "mcore", 1, 1)

    with pytest.raises(BadInputError, match="FERRY_ALLOW_PICKLE"):
        workshop.run(ExportSpec(source=str(tmp_path / "mcore"), target=str(target)))

    assert not target.exists()


def test_the_args_in_the_common_state_are_a_config(
    workshop: Workshop, megatron: Ranks, target: Path, tmp_path: Path
) -> None:
    case = BY_NAME["gqa"]
    train(workshop, megatron, case, tmp_path / "mcore", 1)

    workshop.run(ExportSpec(source=str(tmp_path / "mcore"), target=str(target)))

    assert tensors(target) == tensors(workshop.source(case))
    assert config_of(target) == config_of(workshop.source(case))


def test_an_older_common_file_wins_over_the_common_state(
    workshop: Workshop, megatron: Ranks, target: Path, tmp_path: Path
) -> None:
    train(workshop, megatron, BY_NAME["gqa"], tmp_path / "mcore", 1)
    args = Namespace(num_layers=3, hidden_size=48)
    torch.save({"args": args}, tmp_path / "mcore" / f"iter_{ITERATION:07d}" / "common.pt")

    spec = ExportSpec(
        source=str(tmp_path / "mcore"), target=str(target), hf_config=str(workshop.source(BY_NAME["gqa"]))
    )

    with pytest.raises(BadInputError, match="num_layers 3 in the args"):
        workshop.run(spec)


@pytest.mark.slow
def test_a_vocabulary_padded_for_two_ranks_is_cut_back(
    workshop: Workshop, two_ranks: Ranks, target: Path, tmp_path: Path
) -> None:
    case = BY_NAME["gqa"]
    train(workshop, two_ranks, case, tmp_path / "mcore", 2)
    saved = TorchDistFolder.open(tmp_path / "mcore" / f"iter_{ITERATION:07d}")

    workshop.run(ExportSpec(source=str(tmp_path / "mcore"), target=str(target)))

    assert saved.tensors["output_layer.weight"].shape[0] > VOCABULARY
    assert tensors(target) == tensors(workshop.source(case))


def test_nothing_of_an_optimizer_is_read(workshop: Workshop, megatron: Ranks, target: Path, tmp_path: Path) -> None:
    case = BY_NAME["gqa"]
    train(workshop, megatron, case, tmp_path / "mcore", 1)
    saved = TorchDistFolder.open(tmp_path / "mcore" / f"iter_{ITERATION:07d}")
    items = [chunk.stored for name in saved.tensors if "optimizer" in name for chunk in saved.chunks[name]]
    for item in items:
        with (saved.folder / item.file).open("r+b") as file:
            file.seek(item.offset)
            file.write(b"\xff" * item.length)

    workshop.run(ExportSpec(source=str(tmp_path / "mcore"), target=str(target)))

    assert items
    assert tensors(target) == tensors(workshop.source(case))


def train(workshop: Workshop, ranks: Ranks, case: Case, target: Path, tp_size: int) -> None:
    ranks.run(
        "tests.megatron.saving:save_as_trained",
        root=workshop.imported(case),
        target=target,
        tp_size=tp_size,
        pp_size=1,
        optimizer_format="fully_reshardable",
        described=described(workshop.source(case)),
    )
