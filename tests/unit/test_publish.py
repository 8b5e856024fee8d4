"""Publishing: whole or not at all, and never over something that is there."""

import errno
import json
from pathlib import Path

import pytest

from worker.checkpoints import publish
from worker.checkpoints.publish import MANIFEST, partial_folders, published_manifest, stage
from worker.jobs.errors import BadInputError, ConflictError


def test_a_staged_folder_appears_by_one_rename(tmp_path: Path) -> None:
    staged = stage(tmp_path / "out", "job_1-1")
    (staged.path / MANIFEST).write_text(json.dumps({"job": "job_1"}))
    assert not (tmp_path / "out").exists()

    staged.publish()

    assert published_manifest(tmp_path / "out") == {"job": "job_1"}
    assert not staged.path.exists()


@pytest.mark.parametrize("full", [True, False])
def test_publishing_over_a_folder_is_refused_even_when_it_is_empty(tmp_path: Path, full: bool) -> None:
    staged = stage(tmp_path / "out", "job_1-1")
    (tmp_path / "out").mkdir()
    if full:
        (tmp_path / "out" / "file").touch()

    with pytest.raises(ConflictError):
        staged.publish()

    assert staged.path.is_dir()


def test_what_an_earlier_attempt_left_under_the_same_suffix_is_removed(tmp_path: Path) -> None:
    stage(tmp_path / "out", "job_1-1").path.joinpath("old").touch()

    staged = stage(tmp_path / "out", "job_1-1")

    assert list(staged.path.iterdir()) == []


def test_partial_folders_of_a_job_are_found_and_no_others(tmp_path: Path) -> None:
    mine = {stage(tmp_path / "out", "job_1-1").path, stage(tmp_path / "out", "job_1-2").path}
    stage(tmp_path / "out", "job_2-1")
    stage(tmp_path / "out", "job_11-1")

    assert set(partial_folders(tmp_path / "out", "job_1")) == mine


def test_a_folder_without_manifest_was_never_published(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    assert published_manifest(tmp_path / "out") is None


def test_a_target_without_a_parent_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="parent directory"):
        stage(tmp_path / "no" / "out", "job_1-1")


@pytest.mark.parametrize("kind", ["full folder", "empty folder", "file", "link", "nothing"])
def test_a_replacement_takes_the_place_of_what_is_there(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    match kind:
        case "full folder":
            (target / "inner").mkdir(parents=True)
            (target / "inner" / "old").touch()
        case "empty folder":
            target.mkdir()
        case "file":
            target.touch()
        case "link":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            pass
    staged = stage(target, "job_1-1", replaces=True)
    (staged.path / MANIFEST).write_text(json.dumps({"job": "job_1"}))

    staged.publish()

    assert published_manifest(target) == {"job": "job_1"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in target.iterdir()] == [MANIFEST]


def test_a_stale_attempt_finds_nothing_to_put_in_the_place_of_its_successor(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    stale = stage(tmp_path / "out", "job_1-1", replaces=True)
    stale.discard()  # as the claim after it does

    with pytest.raises(FileNotFoundError):
        stale.publish()

    assert (tmp_path / "out").is_dir()


def test_a_root_that_cannot_exchange_names_is_no_place_for_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument", str(one), None, str(other))

    monkeypatch.setattr(publish, "_exchange", refuse)
    (tmp_path / "out").mkdir()

    with pytest.raises(BadInputError, match="cannot exchange"):
        stage(tmp_path / "out", "job_1-1", replaces=True)

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
