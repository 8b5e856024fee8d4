"""Locations: two spellings of one path, and no way out of the roots."""

from pathlib import Path

import pytest

from worker.jobs.errors import BadInputError, ConflictError
from worker.jobs.locations import Roots, refuse_existing, refuse_inside


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    (tmp_path / "root" / "models").mkdir(parents=True)
    (tmp_path / "root_evil").mkdir()
    return Roots({"data": tmp_path / "root"})


def test_both_spellings_meet(roots: Roots, tmp_path: Path) -> None:
    assert roots.resolve("data:models/x") == roots.resolve(str(tmp_path / "root/models/x"))
    assert roots.resolve("data:models/../models/x") == tmp_path / "root/models/x"


@pytest.mark.parametrize(
    "location",
    [
        "data:../root_evil",
        "data:models/../../root_evil",
        "data:/etc/passwd",
        "other:models",
        "models/x",
        "/etc/passwd",
        "data:a\x00b",
        "",
    ],
)
def test_what_leads_out_of_the_roots_is_refused(roots: Roots, location: str) -> None:
    with pytest.raises(BadInputError) as refused:
        roots.resolve(location)

    assert refused.value.info.code == "bad_location"


def test_a_sibling_whose_name_begins_like_the_root_is_outside(roots: Roots, tmp_path: Path) -> None:
    with pytest.raises(BadInputError):
        roots.resolve(str(tmp_path / "root_evil" / "x"))


def test_a_link_out_of_the_root_is_refused(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "root" / "way_out").symlink_to(tmp_path / "root_evil")

    with pytest.raises(BadInputError):
        roots.resolve("data:way_out/x")


def test_a_link_out_from_beneath_a_source_is_refused(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "root_evil" / "secret.json").write_text("{}")
    (tmp_path / "root" / "models" / "config.json").symlink_to(tmp_path / "root_evil" / "secret.json")

    with pytest.raises(BadInputError, match=r"config\.json"):
        roots.resolve_source("data:models")


def test_links_inside_the_root_are_followed_as_hubs_caches_need(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "root" / "blob").write_text("{}")
    (tmp_path / "root" / "models" / "config.json").symlink_to("../blob")

    assert roots.resolve_source("data:models") == tmp_path / "root" / "models"


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_anything_at_the_target_counts_as_existing(tmp_path: Path, make: object) -> None:
    make(tmp_path / "target")  # type: ignore[operator]

    with pytest.raises(ConflictError) as refused:
        refuse_existing(tmp_path / "target")

    assert refused.value.info.code == "target_exists"


def test_a_root_is_no_target_and_neither_is_what_it_lies_in(tmp_path: Path) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    roots = Roots({"data": tmp_path / "data", "inner": tmp_path / "data" / "inner"})

    for location in ("data:", "data:.", "inner:", str(tmp_path / "data"), "data:inner"):
        with pytest.raises(BadInputError, match="a root itself"):
            roots.resolve_target(location)

    assert roots.resolve_target("data:new") == tmp_path / "data" / "new"


def test_nothing_is_put_in_the_place_of_its_own_source(tmp_path: Path) -> None:
    for source, target in (("a", "a/b"), ("a/b", "a"), ("a", "a")):
        with pytest.raises(BadInputError, match="the source"):
            refuse_inside(tmp_path / source, tmp_path / target)
