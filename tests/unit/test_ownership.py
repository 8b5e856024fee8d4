"""Whose an output is: owner, group and mode of its root."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.handlers import ownership
from worker.handlers.ownership import Ownership, ownership_of
from worker.jobs.errors import BadInputError
from worker.jobs.roots import Root, named_root_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    (made / "release").mkdir(parents=True)
    for name in ("manifest.json", "release/a.distcp"):
        (made / name).write_text("x")
    return made


def every(folder: Path, look: Callable[[os.stat_result], int]) -> dict[str, int]:
    return {str(path.relative_to(folder)): look(path.stat()) for path in (folder, *folder.rglob("*"))}


def test_a_mode_is_that_of_files_and_directories_can_be_entered(folder: Path) -> None:
    Ownership(mode=0o640).give(folder)

    modes = every(folder, lambda status: status.st_mode & 0o7777)
    assert modes == {".": 0o750, "release": 0o750, "manifest.json": 0o640, "release/a.distcp": 0o640}


@needs_root
def test_an_owner_and_a_group_are_those_of_all(folder: Path) -> None:
    ownership_of("data", Root(path=folder, owner="nobody", group="12345")).give(folder)

    assert set(every(folder, lambda status: status.st_gid).values()) == {12345}
    assert set(every(folder, lambda status: status.st_uid).values()) == {65534}


def test_nothing_said_changes_nothing(folder: Path) -> None:
    before = every(folder, lambda status: hash((status.st_mode, status.st_uid, status.st_gid)))
    ownership_of("data", Root(path=folder)).give(folder)
    assert every(folder, lambda status: hash((status.st_mode, status.st_uid, status.st_gid))) == before


@pytest.mark.parametrize(("given", "named"), [({"owner": "no-such-user"}, "no-such-user"), ({"group": "nope"}, "nope")])
def test_whom_the_host_does_not_know_is_named(tmp_path: Path, given: dict[str, str], named: str) -> None:
    with pytest.raises(BadInputError, match=named):
        ownership_of("data", Root.model_validate({"path": tmp_path, **given}))


def test_a_worker_that_may_not_give_files_away_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_may_give_away", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [1000, 2000])

    with pytest.raises(BadInputError, match="CAP_CHOWN"):
        ownership_of("data", Root(path=tmp_path, owner="1001"))
    with pytest.raises(BadInputError, match="group 3000"):
        ownership_of("data", Root(path=tmp_path, group="3000"))
    assert ownership_of("data", Root(path=tmp_path, owner="1000", group="2000")) == Ownership(owner=1000, group=2000)


def test_the_innermost_root_counts(tmp_path: Path) -> None:
    roots = {"data": Root(path=tmp_path), "inner": Root(path=tmp_path / "inner")}

    found = [named_root_of(tmp_path / name, roots) for name in ("a", "inner/a", "inner")]
    assert [item and item[0] for item in found] == ["data", "inner", "inner"]
    assert named_root_of(tmp_path.parent / "else", roots) is None
