"""Where a cgroup of v2 may be made, on folders that look like the kernel's."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from worker.dispatch.memory_group import MemoryGroup, make_memory_group

FILES = ("cgroup.procs", "memory.max", "memory.swap.max", "memory.oom.group")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc/self of a worker in /unit/main, under systemd's delegation, with v2 mounted at the test's folder."""
    mount = tmp_path / "cgroup"
    (mount / "unit" / "main").mkdir(parents=True)
    (mount / "unit" / "cgroup.subtree_control").touch()
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text("0::/unit/main\n")
    (folder / "mountinfo").write_text(f"31 23 0:28 / {mount} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n")
    return folder


def kernel_fills(monkeypatch: pytest.MonkeyPatch, parents: Iterable[Path]) -> None:
    """New folders in these have the memory controller's files, as the kernel would have it."""
    real, holders = Path.mkdir, set(parents)

    def mkdir(path: Path, *given: int, **options: bool) -> None:
        real(path, *given, **options)
        if path.parent in holders:
            for name in FILES:
                (path / name).touch()
            (path / "memory.events").write_text("low 0\noom 2\noom_kill 3\noom_group_kill 1\n")

    monkeypatch.setattr(Path, "mkdir", mkdir)


def test_beside_the_workers_own_where_that_one_has_processes(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = proc.parent / "cgroup" / "unit"
    kernel_fills(monkeypatch, [unit])

    group = make_memory_group(proc)

    assert group is not None
    assert (group.folder.parent, group.version) == (unit, 2)
    assert (unit / "cgroup.subtree_control").read_text() == "+memory"
    assert (group.folder / "memory.oom.group").read_text() == "1"
    assert group.oom_kills() == 3
    assert [path.name for path in (unit / "main").iterdir()] == [], "what was tried in vain is gone"


def test_nowhere_without_the_memory_controller(proc: Path) -> None:
    assert make_memory_group(proc) is None
    assert sorted(path.name for path in (proc.parent / "cgroup" / "unit").iterdir() if path.is_dir()) == ["main"]


def test_nowhere_without_cgroups(tmp_path: Path) -> None:
    assert make_memory_group(tmp_path) is None


def test_a_limit_of_v2_allows_no_swap_and_can_be_lifted(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).touch()
    group = MemoryGroup(tmp_path, 2)

    group.limit(1000)
    assert [(tmp_path / name).read_text() for name in ("memory.max", "memory.swap.max")] == ["1000", "0"]

    group.limit(None)
    assert [(tmp_path / name).read_text() for name in ("memory.max", "memory.swap.max")] == ["max", "max"]
