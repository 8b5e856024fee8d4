"""Megatron's older checkpoints, a pickle a rank: shards that torch saved become the tensors that `torch_dist` has."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unit.test_torch_dist import raw, read
from worker.checkpoints.iterations import iteration_folder
from worker.checkpoints.legacy_torch import LegacyShards, LegacyTorchFolder
from worker.jobs.errors import BadInputError

Tensors = dict[str, torch.Tensor]

HIDDEN, FFN, LAYERS, VOCABULARY = 4, 6, 4, 8


def whole_model() -> Tensors:
    """Two heads of one query group each, gated; every value another."""
    shapes = {
        "embedding.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight": (LAYERS, HIDDEN),
        "decoder.layers.self_attention.linear_qkv.weight": (LAYERS, 12, HIDDEN),
        "decoder.layers.self_attention.linear_proj.weight": (LAYERS, HIDDEN, 4),
        "decoder.layers.mlp.linear_fc1.layer_norm_weight": (LAYERS, HIDDEN),
        "decoder.layers.mlp.linear_fc1.weight": (LAYERS, 2 * FFN, HIDDEN),
        "decoder.layers.mlp.linear_fc1.bias": (LAYERS, 2 * FFN),
        "decoder.layers.mlp.linear_fc2.weight": (LAYERS, HIDDEN, FFN),
        "decoder.layers.mlp.linear_fc2.bias": (LAYERS, HIDDEN),
        "decoder.final_layernorm.weight": (HIDDEN,),
        "output_layer.weight": (VOCABULARY, HIDDEN),
    }
    torch.manual_seed(0)
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


def share(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """A tensor rank's part of one layer's parameter, as Megatron's layers hold it."""
    if "linear_fc1" in name and "layer_norm" not in name:
        return torch.cat([half.chunk(size)[rank] for half in tensor.chunk(2)])
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return tensor.chunk(size, 1)[rank]
    if "linear_qkv.weight" in name or name.startswith(("embedding", "output_layer")):
        return tensor.chunk(size)[rank]
    return tensor


def stage(model: Tensors, layers: range, tp_rank: int, tp_size: int) -> Tensors:
    """What one rank holds of these layers, numbered from 0."""
    found: Tensors = {}
    for name, tensor in model.items():
        if name.startswith("decoder.layers."):
            for place, layer in enumerate(layers):
                local = name.replace("layers.", f"layers.{place}.")
                found[local] = share(name, tensor[layer], tp_rank, tp_size).clone()
        elif (layers.start == 0) if name.startswith("embedding") else (layers.stop == LAYERS):
            found[name] = share(name, tensor, tp_rank, tp_size).clone()
    return found


def save_rank(root: Path, folder: str, *models: dict[str, object], **args: object) -> None:
    keys = ["model"] if len(models) == 1 else [f"model{number}" for number in range(len(models))]
    # Nothing here could be found: an optimizer's tensors are not looked at.
    optimizer = {"state": {0: {"exp_avg": torch.randn(3, 4).t()}}, "param_groups": []}
    saved = {"args": Namespace(**args), "checkpoint_version": 3.0, "iteration": 7, "optimizer": optimizer}
    path = root / folder / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({**saved, **dict(zip(keys, models, strict=True))}, path)


def save(root: Path, model: Tensors, tp_size: int, pp_size: int, virtual: int = 1) -> None:
    """Every rank's file, as Megatron names them."""
    each = LAYERS // (pp_size * virtual)
    for tp_rank in range(tp_size):
        for pp_rank in range(pp_size):
            starts = [(number * pp_size + pp_rank) * each for number in range(virtual)]
            stages = [stage(model, range(start, start + each), tp_rank, tp_size) for start in starts]
            name = f"mp_rank_{tp_rank:02d}" + (f"_{pp_rank:03d}" if pp_size > 1 else "")
            sizes = {"tensor_model_parallel_size": tp_size, "pipeline_model_parallel_size": pp_size}
            save_rank(root, name, *(dict[str, object](of_stage) for of_stage in stages), **sizes)


def merged(root: Path, *, stacked: bool = True) -> LegacyTorchFolder:
    return LegacyShards.open(root).merged(stacked=stacked)


def content(folder: LegacyTorchFolder, name: str) -> bytes:
    shape = folder.tensors[name].shape
    if name.startswith("decoder.layers."):
        return b"".join(read(folder.rows(name, (layer,), 0, shape[1])) for layer in range(shape[0]))
    return read(folder.rows(name, (), 0, shape[0]))


@pytest.mark.parametrize(
    ("tp_size", "pp_size", "virtual"),
    [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (1, 2, 2), (2, 2, 2)],
    ids=["one rank", "TP2", "PP2", "TP2 PP2", "PP2 VPP2", "TP2 PP2 VPP2"],
)
def test_any_cut_is_put_together(tmp_path: Path, tp_size: int, pp_size: int, virtual: int) -> None:
    model = whole_model()
    save(tmp_path, model, tp_size, pp_size, virtual)

    folder = merged(tmp_path)

    assert {name: tensor.shape for name, tensor in folder.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.items()
    }
    for name, tensor in model.items():
        assert content(folder, name) == raw(tensor), name


@pytest.mark.parametrize(("start", "rows"), [(0, 12), (2, 3), (5, 2), (6, 6), (4, 7)])
def test_any_rows_of_a_gated_layer_are_found(tmp_path: Path, start: int, rows: int) -> None:
    model = whole_model()
    save(tmp_path, model, 2, 1)
    name = "decoder.layers.mlp.linear_fc1.weight"

    found = merged(tmp_path).rows(name, (3,), start, rows)

    assert read(found) == raw(model[name][3, start : start + rows])


def test_layers_that_are_not_alike_have_names_of_their_own(tmp_path: Path) -> None:
    model = whole_model()
    save(tmp_path, model, 1, 2)

    folder = merged(tmp_path, stacked=False)

    name = "decoder.layers.3.mlp.linear_fc2.weight"
    assert folder.tensors[name].shape == (HIDDEN, FFN)
    assert read(folder.rows(name, (), 0, HIDDEN)) == raw(model["decoder.layers.mlp.linear_fc2.weight"][3])


def test_norms_of_local_layers_get_the_names_of_checkpoints(tmp_path: Path) -> None:
    model = whole_model()
    local = {
        name.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.").replace(
            "mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."
        ): tensor
        for name, tensor in stage(model, range(LAYERS), 0, 1).items()
    }
    save_rank(tmp_path, "mp_rank_00", dict[str, object](local))

    folder = merged(tmp_path)

    assert folder.tensors.keys() == model.keys()
    for name, tensor in model.items():
        assert content(folder, name) == raw(tensor)


@pytest.mark.parametrize(
    "spelling",
    ["mlp.experts.local_experts.{expert}.linear_fc1.weight", "mlp.experts.linear_fc1.weight{expert}"],
    ids=["one by one", "grouped"],
)
def test_experts_are_a_stack(tmp_path: Path, spelling: str) -> None:
    experts = torch.randn(2, 3, FFN, HIDDEN)
    tensors = {
        f"decoder.layers.{layer}.{spelling.format(expert=expert)}": experts[layer, expert].clone()
        for layer in range(2)
        for expert in range(3)
    }
    save_rank(tmp_path, "mp_rank_00", dict[str, object](tensors))

    folder = merged(tmp_path)

    name = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    assert folder.tensors[name].shape == (2, 3, FFN, HIDDEN)
    assert read(folder.rows(name, (1, 2), 1, 2)) == raw(experts[1, 2, 1:3])


def test_states_of_kernels_are_no_tensors_of_the_model(tmp_path: Path) -> None:
    states = {"output_layer._extra_state": torch.zeros(3, dtype=torch.uint8), "mlp.linear_fc1._extra_state0": None}
    save_rank(tmp_path, "mp_rank_00", {"output_layer.weight": torch.randn(2, 2), **states})

    assert list(merged(tmp_path).tensors) == ["output_layer.weight"]


@pytest.mark.parametrize("name", ["mp_rank_00", "mp_rank_00_000"])
@pytest.mark.parametrize(("text", "folder"), [("release", "release"), ("12\n", "iter_0000012"), (None, "")])
def test_the_iteration_is_found(tmp_path: Path, name: str, text: str | None, folder: str) -> None:
    (tmp_path / folder / name).mkdir(parents=True)
    if text:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(text)

    assert iteration_folder(tmp_path) == tmp_path / folder


def _lose(root: Path) -> None:
    shutil.rmtree(root / "mp_rank_01_001")


def _lose_the_last_stage(root: Path) -> None:
    shutil.rmtree(root / "mp_rank_00_001")
    shutil.rmtree(root / "mp_rank_01_001")


def _lose_a_file(root: Path) -> None:
    (root / "mp_rank_01_001" / "model_optim_rng.pt").unlink()


def _break(root: Path) -> None:
    (root / "mp_rank_01_001" / "model_optim_rng.pt").write_bytes(b"PK\3\4 no archive")


def _truncate(root: Path) -> None:
    path = root / "mp_rank_01_001" / "model_optim_rng.pt"
    path.write_bytes(path.read_bytes()[:-1000])


def _add_expert_ranks(root: Path) -> None:
    (root / "mp_rank_00_000").rename(root / "mp_rank_00_000_000")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_lose, "mp_rank"),
        (_lose_the_last_stage, "PP 2"),
        (_lose_a_file, "model_optim_rng.pt"),
        (_break, "model_optim_rng.pt"),
        (_truncate, "model_optim_rng.pt"),
        (_add_expert_ranks, "expert"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_ranks_that_are_missing_broken_or_cut_by_experts_are_named(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    save(tmp_path, whole_model(), 2, 2)
    spoil(tmp_path)

    with pytest.raises(BadInputError, match=says):
        merged(tmp_path)


@pytest.mark.parametrize(
    "args",
    [
        {"expert_model_parallel_size": 2},
        {"num_experts": 8, "tensor_model_parallel_size": 1, "expert_tensor_parallel_size": 2},
    ],
    ids=["EP2", "ETP2"],
)
def test_args_that_tell_of_cut_experts_are_believed(tmp_path: Path, args: dict[str, object]) -> None:
    save_rank(tmp_path, "mp_rank_00", {"output_layer.weight": torch.randn(2, 2)}, **args)

    with pytest.raises(BadInputError, match="expert_"):
        merged(tmp_path)


def test_a_parameter_whose_cut_is_unknown_is_named(tmp_path: Path) -> None:
    for rank in range(2):
        save_rank(tmp_path, f"mp_rank_{rank:02d}", {"decoder.layers.0.mixer.in_proj.weight": torch.randn(2, 2)})

    with pytest.raises(BadInputError, match=r"mixer\.in_proj"):
        merged(tmp_path)


def test_a_model_from_before_megatron_core_is_refused(tmp_path: Path) -> None:
    save_rank(tmp_path, "mp_rank_00", {"language_model": {"embedding": {"weight": torch.randn(2, 2)}}})

    with pytest.raises(BadInputError, match="language_model"):
        merged(tmp_path)


@pytest.mark.parametrize(
    ("value", "says"),
    [(torch.randn(4, 2).t(), "not contiguous"), (torch.eye(3).to_sparse(), "no plain tensor"), ("text", "no plain")],
    ids=["transposed", "sparse", "text"],
)
def test_a_tensor_in_another_form_is_named(tmp_path: Path, value: object, says: str) -> None:
    save_rank(tmp_path, "mp_rank_00", {"output_layer.weight": value})

    with pytest.raises(BadInputError, match=rf"output_layer.*{says}"):
        merged(tmp_path)


def test_shards_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for rank, dtype in enumerate((torch.float32, torch.bfloat16)):
        save_rank(tmp_path, f"mp_rank_{rank:02d}", {"output_layer.weight": torch.randn(2, 2, dtype=dtype)})

    with pytest.raises(BadInputError, match="BF16"):
        merged(tmp_path)


def test_nothing_in_the_pickle_runs(tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "made",)

    save_rank(tmp_path / "saved", "mp_rank_00", {"output_layer.weight": torch.randn(2, 2)}, timers=Malice())

    shards = LegacyShards.open(tmp_path / "saved")

    assert str(shards.args["timers"]).startswith("<")
    assert not (tmp_path / "made").exists()
