"""Parts of one job: done by several workers, and never twice although attempts are killed, cancelled and retried."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import Farm, until
from tests.jobs_here import do
from tests.llama_folder import write_llama
from worker.jobs.spec import ImportSpec
from worker.jobs.state import CheckpointResult, Succeeded

PART_BYTES = 2**20
SLOW = 4 * 2**20
"""Bytes a second: the 26 MB of this model take some seconds."""


@pytest.fixture
def large(farm: Farm) -> ImportSpec:
    """26 MB in some two dozen parts."""
    write_llama(farm.root / "large", layers=6, hidden=256)
    return ImportSpec(source="here:large", target="here:out-1", part_bytes=PART_BYTES)


def result(farm: Farm) -> CheckpointResult:
    state = farm.until_state("succeeded", seconds=90).state
    assert isinstance(state, Succeeded)
    assert isinstance(state.result, CheckpointResult)
    return state.result


def journal(farm: Farm) -> dict[int, int]:
    """Parts that a partial folder says are done, and their bytes."""
    done: dict[int, int] = {}
    for path in farm.root.glob("*.partial-*/.ferry-parts"):
        for line in path.read_text().split("\n")[1:]:
            if line.endswith("}"):
                part = json.loads(line)
                done[part["part"]] = sum(length for _, length, *_ in part["segments"])
    return done


def until_parts_done(farm: Farm, count: int) -> dict[int, int]:
    return until(
        lambda: found if len(found := journal(farm)) >= count else None,
        seconds=60,
        what=f"{count} parts\n{farm.logs()}",
    )


def whole(farm: Farm, expected: Path) -> None:
    """The output is what an undisturbed import of the same model makes."""
    ours, theirs = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (farm.target(), expected)
    )
    for files in (ours, theirs):
        del files["manifest.json"], files["model_config.json"]  # they name the source as it was asked for
    assert ours == theirs


@pytest.fixture
def undisturbed(farm: Farm, large: ImportSpec, warm_model_configs: Path) -> Path:
    target = farm.root / "undisturbed"
    spec = ImportSpec(source=str(farm.root / "large"), target=str(target), part_bytes=PART_BYTES)
    do(spec, warm_model_configs)
    return target


def test_a_killed_workers_finished_parts_are_not_written_again(
    farm: Farm, large: ImportSpec, undisturbed: Path
) -> None:
    worker = farm.start_worker(bytes_per_second=SLOW, FERRY_COPY_PROCESSES="1")
    farm.submit(large)
    done = until_parts_done(farm, 5)
    os.killpg(worker.pid, signal.SIGKILL)
    done = journal(farm)

    farm.start_worker(FERRY_COPY_PROCESSES="1")

    outcome = result(farm)
    assert outcome.resumed_bytes >= sum(done.values())
    [pool] = farm.processes()["pool"]
    # The kernel's count of all that the pool process and the ended processes under it have written.
    assert pool.io_counters().write_chars < outcome.bytes - sum(done.values()) + 2**20
    whole(farm, undisturbed)


def test_a_cancelled_and_retried_job_goes_on_where_it_was(farm: Farm, large: ImportSpec, undisturbed: Path) -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit(large)
    until_parts_done(farm, 3)
    farm.store.cancel("job_1")
    farm.until_state("cancelled")
    done = journal(farm)

    farm.store.retry("job_1")

    assert result(farm).resumed_bytes >= sum(done.values()) > 0
    whole(farm, undisturbed)
    assert farm.partials() == []


def test_parts_of_another_source_are_never_used(farm: Farm, large: ImportSpec, warm_model_configs: Path) -> None:
    farm.start_worker(bytes_per_second=SLOW)
    farm.submit(large)
    until_parts_done(farm, 3)
    farm.store.cancel("job_1")
    farm.until_state("cancelled")
    source = farm.root / "large" / "model.safetensors"
    data = bytearray(source.read_bytes())
    data[-1000:] = bytes(1000)
    source.write_bytes(data)

    farm.store.retry("job_1")

    assert result(farm).resumed_bytes == 0
    spec = ImportSpec(source=str(farm.root / "large"), target=str(farm.root / "other"), part_bytes=PART_BYTES)
    do(spec, warm_model_configs)
    whole(farm, farm.root / "other")


def test_two_workers_do_the_parts_of_one_job(farm: Farm, large: ImportSpec, undisturbed: Path) -> None:
    for _ in range(2):
        farm.start_worker(bytes_per_second=SLOW, FERRY_COPY_PROCESSES="1")
    farm.submit(large)

    outcome = result(farm)

    assert outcome.resumed_bytes == 0
    whole(farm, undisturbed)
    logs = [(farm.data / f"worker-{number}.log").read_text() for number in range(2)]
    helped = [int(count) for log in logs for count in re.findall(r"job_helped .*parts=(\d+)", log)]
    assert sum(helped) >= 5, farm.logs()


def test_a_helper_that_is_killed_costs_only_what_it_held(farm: Farm, large: ImportSpec, undisturbed: Path) -> None:
    first = farm.start_worker(bytes_per_second=SLOW, FERRY_COPY_PROCESSES="1")
    farm.submit(large)
    farm.until_copying()
    helper = farm.start_worker(bytes_per_second=SLOW, FERRY_COPY_PROCESSES="1")
    until(lambda: "help_began" in (farm.data / "worker-1.log").read_text(), seconds=30, what="help")

    os.killpg(helper.pid, signal.SIGKILL)

    result(farm)
    assert first.poll() is None
    assert farm.store.get("job_1").attempts == 1
    whole(farm, undisturbed)


def test_when_the_jobs_own_worker_is_killed_its_helpers_parts_count(
    farm: Farm, large: ImportSpec, undisturbed: Path
) -> None:
    first = farm.start_worker(bytes_per_second=SLOW // 4, FERRY_COPY_PROCESSES="1")
    farm.submit(large)
    farm.until_copying()
    farm.start_worker(bytes_per_second=SLOW, FERRY_COPY_PROCESSES="1")
    done = until_parts_done(farm, 6)

    os.killpg(first.pid, signal.SIGKILL)

    assert result(farm).resumed_bytes >= sum(done.values())
    whole(farm, undisturbed)


def test_a_helper_that_sees_another_source_writes_nothing(
    farm: Farm, large: ImportSpec, undisturbed: Path, tmp_path: Path
) -> None:
    """Its root holds a copy of the model with other times: another host's idea of the same path."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(farm.root, elsewhere)
    os.utime(elsewhere / "large" / "model.safetensors", (1, 1))
    farm.start_worker(bytes_per_second=SLOW, FERRY_COPY_PROCESSES="1")
    farm.submit(large)
    farm.until_copying()
    farm.start_worker(FERRY_ROOTS=f"here={elsewhere}")

    result(farm)

    whole(farm, undisturbed)
    assert "help_ended" in (farm.data / "worker-1.log").read_text()
    assert sorted(path.name for path in elsewhere.iterdir()) == sorted({"large", "llama", "undisturbed"})
