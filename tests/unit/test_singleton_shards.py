"""Tensors that Megatron saved in pieces with keys of their own: whole again, to the byte, or refused."""

from pathlib import Path

import pytest
import torch

from tests.megatron_adapter import Tensors, write_tensors
from worker.checkpoints.singleton_shards import SingletonShards, has_singletons
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.engine.reading import read_extent
from worker.jobs.errors import BadInputError
from worker.verification.readers import TorchDistReader

EXPERTS, FC1 = "decoder.layers.0.mlp.experts.experts", "decoder.layers.1.mlp.linear_fc1.weight"
MOMENT = f"optimizer.state.exp_avg.{FC1}_w"


def pieces() -> Tensors:
    """Three experts in one layer, a gated layer in the next, and an optimizer's state."""
    torch.manual_seed(0)
    names = [f"{EXPERTS}.{expert}.linear_fc1.weight_{half}" for expert in range(3) for half in "wv"]
    down = {f"{EXPERTS}.{expert}.linear_fc2.weight": torch.randn(5, 2) for expert in range(3)}
    halves = {name: torch.randn(4, 5) for name in (*names, f"{FC1}_w", f"{FC1}_v")}
    return {**halves, **down, MOMENT: torch.randn(4, 5), "decoder.final_layernorm.weight": torch.randn(5)}


def whole(saved: Tensors) -> Tensors:
    """As `singleton_local_shards: False` has them, layer by layer."""
    halves = [[saved[f"{EXPERTS}.{expert}.linear_fc1.weight_{half}"] for half in "wv"] for expert in range(3)]
    return {
        f"{EXPERTS}.linear_fc1.weight": torch.stack([torch.cat(of) for of in halves]),
        f"{EXPERTS}.linear_fc2.weight": torch.stack([saved[f"{EXPERTS}.{e}.linear_fc2.weight"] for e in range(3)]),
        FC1: torch.cat([saved[f"{FC1}_w"], saved[f"{FC1}_v"]]),
        **{name: saved[name] for name in (MOMENT, "decoder.final_layernorm.weight")},
    }


def test_pieces_are_read_as_the_tensors_that_they_are(tmp_path: Path) -> None:
    saved = pieces()
    write_tensors(tmp_path / "saved", saved)
    expected = whole(saved)

    source, reader = SingletonShards.of(TorchDistFolder.open(tmp_path / "saved")), TorchDistReader(tmp_path / "saved")

    assert has_singletons(saved)
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    for name, tensor in expected.items():
        assert b"".join(map(read_extent, source.whole(name))) == tensor.numpy().tobytes()
    rows = source.rows(f"{EXPERTS}.linear_fc1.weight", (2,), 3, 2)  # of both halves
    assert b"".join(map(read_extent, rows)) == expected[f"{EXPERTS}.linear_fc1.weight"][2, 3:5].numpy().tobytes()
    assert torch.equal(reader.read(f"{EXPERTS}.linear_fc1.weight", (1,)), expected[f"{EXPERTS}.linear_fc1.weight"][1])
    assert torch.equal(reader.read(FC1, ()), expected[FC1])
    assert {path.name for path in source.files_of([FC1])} >= {".metadata", "metadata.json"}


@pytest.mark.parametrize(
    "lost", [f"{EXPERTS}.1.linear_fc2.weight", f"{EXPERTS}.1.linear_fc1.weight_v", f"{FC1}_w"], ids=str
)
def test_a_piece_that_is_not_there_is_an_error(tmp_path: Path, lost: str) -> None:
    write_tensors(tmp_path / "saved", {name: tensor for name, tensor in pieces().items() if name != lost})

    with pytest.raises(BadInputError, match="each expert and each half of it once"):
        SingletonShards.of(TorchDistFolder.open(tmp_path / "saved"))


@pytest.mark.parametrize("beside", ["w", "v", "wv"])
def test_a_tensor_that_is_there_whole_and_in_pieces_is_an_error(tmp_path: Path, beside: str) -> None:
    halves = {f"{FC1}_{half}": torch.randn(4, 5) for half in beside}
    write_tensors(tmp_path / "saved", {FC1: torch.randn(4, 5), **halves})

    with pytest.raises(BadInputError, match="each expert and each half of it once"):
        SingletonShards.of(TorchDistFolder.open(tmp_path / "saved"))


def test_experts_scalars_are_stacked_too(tmp_path: Path) -> None:
    name = "decoder.layers.0.mlp.experts.experts.{}.linear_fc1.amax"
    write_tensors(tmp_path / "saved", {name.format(expert): torch.tensor(float(expert)) for expert in range(3)})

    source = SingletonShards.of(TorchDistFolder.open(tmp_path / "saved"))

    assert source.tensors[name.replace("{}.", "")].shape == (3,)


def test_a_piece_of_another_form_is_an_error(tmp_path: Path) -> None:
    write_tensors(tmp_path / "saved", {**pieces(), f"{FC1}_v": torch.randn(4, 5).bfloat16()})

    with pytest.raises(BadInputError, match="all in one form"):
        SingletonShards.of(TorchDistFolder.open(tmp_path / "saved"))
