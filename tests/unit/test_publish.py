"""Publishing: whole or not at all, and never over something that is there."""

import json
from pathlib import Path

import pytest

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
