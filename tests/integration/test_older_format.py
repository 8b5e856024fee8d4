"""The older `torch` format on the command line: refused until it is allowed, then exported and verified."""

import json
from pathlib import Path

import pytest
import torch

from tests.integration.test_described import same_tensors
from tests.integration.test_verify import do
from tests.llama_folder import write_llama
from tests.unit.test_cli import ferry
from tests.unit.test_legacy_torch import save_rank
from tests.unit.test_torch_dist import read
from worker.checkpoints.torch_dist import TorchDistFolder
from worker.jobs.spec import ImportSpec


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, warm_model_configs: Path) -> Path:
    """A folder with `hf` and the same model as an older Megatron saved it, `older`."""
    folder = tmp_path_factory.mktemp("older")
    write_llama(folder / "hf", layers=2, hidden=64)
    do(ImportSpec(source=str(folder / "hf"), target=str(folder / "mcore")), warm_model_configs)
    save_rank(folder / "older" / "iter_0000007", "mp_rank_00", state_dict(folder / "mcore" / "release"))
    (folder / "older" / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


def state_dict(release: Path) -> dict[str, object]:
    opened = TorchDistFolder.open(release)
    found: dict[str, object] = {}
    for name, stored in opened.tensors.items():
        if not name.startswith("decoder.layers."):
            found[name] = tensor(opened, name, (), stored.shape)
            continue
        for layer in range(stored.shape[0]):
            local = name.replace("layers.", f"layers.{layer}.")
            found[local] = tensor(opened, name, (layer,), stored.shape[1:])
    return found


def tensor(opened: TorchDistFolder, name: str, index: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
    data = read(opened.rows(name, index, 0, shape[0]))
    return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("place", ["older", "older/iter_0000007"])
def test_it_is_exported_where_that_is_allowed(made: Path, tmp_path: Path, place: str) -> None:
    command = ("export", made / place, tmp_path / "back", "--hf-config", made / "hf", "--local")

    refused = ferry(*command)
    exported = ferry(*command, "--allow-pickle")

    assert refused.returncode == 2
    assert "--allow-pickle" in refused.stderr
    assert "FERRY_ALLOW_PICKLE" in refused.stderr
    assert exported.returncode == 0, exported.stderr
    assert same_tensors(tmp_path / "back", made / "hf")


@pytest.mark.parametrize("check", ["tensors", "logits"])
def test_what_has_no_reader_of_its_own_is_refused_before_the_copy(made: Path, tmp_path: Path, check: str) -> None:
    command = ("export", made / "older", tmp_path / "back", "--hf-config", made / "hf", "--local", "--allow-pickle")

    done = ferry(*command, "--verify", check)

    assert done.returncode == 2
    assert "older torch format" in done.stderr
    assert "copying" not in done.stderr
    assert not (tmp_path / "back").exists()


def test_its_plan_is_shown_where_that_is_allowed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_ALLOW_PICKLE", "1")

    planned = ferry("export", made / "older", tmp_path / "back", "--hf-config", made / "hf", "--local", "--plan")

    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["bytes"] > 0
    assert not (tmp_path / "back").exists()


def test_it_is_compared_with_another_checkpoint(made: Path) -> None:
    command = ("verify", made / "older", made / "hf", "--hf-config", made / "hf", "--local")

    assert ferry(*command).returncode == 2
    assert ferry(*command, "--allow-pickle").returncode == 0
    assert "older torch format" in ferry(*command, "--allow-pickle", "--logits").stderr


def test_a_release_folder_is_found(made: Path, tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "release").symlink_to(made / "older" / "iter_0000007")
    (tmp_path / "older" / "latest_checkpointed_iteration.txt").write_text("release")

    exported = ferry(
        "export", tmp_path / "older", tmp_path / "back", "--hf-config", made / "hf", "--local", "--allow-pickle"
    )

    assert exported.returncode == 0, exported.stderr
    assert same_tensors(tmp_path / "back", made / "hf")


def test_tied_embeddings_that_differ_are_refused(made: Path, tmp_path: Path) -> None:
    tied = json.loads((made / "hf" / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied))

    done = ferry(
        "export",
        made / "older",
        tmp_path / "back",
        "--hf-config",
        tmp_path / "config.json",
        "--local",
        "--allow-pickle",
    )

    assert done.returncode == 2
    assert "output_layer.weight" in done.stderr
    assert "tie_word_embeddings" in done.stderr
