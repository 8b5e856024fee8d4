"""Slots pinned to GPUs: each job sees its own alone. On a host with two, they are real; else they are pretended."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.dispatch.gpus import find_gpus
from worker.dispatch.supervisor import Supervisor
from worker.dispatch.tied import PROJECT
from worker.dispatch.up_plan import read_arguments
from worker.jobs.spec import ConfigSpec, ImportSpec, JobRequest
from worker.jobs.state import Queued, Running
from worker.jobs.waiting import WaitsForDevices, WaitsForSlot
from worker.settings import WorkerSettings

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Farm

_FOUND = [gpu.uuid for gpu in find_gpus()]
A, B = _FOUND[:2] if len(_FOUND) > 1 else ("GPU-aaaa", "GPU-bbbb")
PRETENDED = {"FERRY_PRETEND_GPUS": "" if len(_FOUND) > 1 else f"{A},{B}", "FERRY_HOST_GPUS": "2"}


def start(farm: "Farm", *gpus: str, **settings: str) -> None:
    for gpu in gpus:
        farm.start_worker(FERRY_GPU=gpu, FERRY_COPY_PROCESSES="1", **PRETENDED, **settings)


def submit(farm: "Farm", job_id: str, gpus: int, *, target: str | None = None) -> None:
    spec = ImportSpec(source="here:llama", target=f"here:{target}") if target else ConfigSpec(source="here:llama")
    path = str(farm.root / target) if target else None
    farm.store.submit(job_id, JobRequest(spec=spec, gpus=gpus), target=path)


def devices(farm: "Farm", job_id: str) -> tuple[str, ...]:
    """What its last attempt leased."""
    claims = [event for event in farm.store.events(job_id) if event.event == "claimed"]
    return claims[-1].devices or ()


def seen(farm: "Farm", job_id: str) -> list[str]:
    """What each attempt's own process found, as the worker heard from it."""
    return [line.split("devices=")[1] for line in farm.logs().splitlines() if f"gpus_seen job={job_id} " in line]


def test_two_pinned_workers_run_side_by_side_each_with_its_own_gpu(farm: "Farm") -> None:
    start(farm, A, B, FERRY_IO_BYTES_PER_SECOND="4000000")
    for number in (1, 2):
        submit(farm, f"job_{number}", 1, target=f"out-{number}")

    def both() -> bool:
        return all(isinstance(farm.store.get(f"job_{number}").state, Running) for number in (1, 2))

    until(both, seconds=30, what=f"both running\n{farm.logs()}")
    for number in (1, 2):
        farm.until_state("succeeded", f"job_{number}")

    leased = [devices(farm, f"job_{number}") for number in (1, 2)]
    assert sorted(leased) == [(A,), (B,)]
    assert [seen(farm, f"job_{number}") for number in (1, 2)] == [[leased[0][0]], [leased[1][0]]]
    assert {slot.gpu for slot in farm.store.slots()} == {A, B}


def test_a_job_for_two_gpus_leases_both_and_sees_both(farm: "Farm") -> None:
    start(farm, A, B)
    submit(farm, "job_1", 2)
    farm.until_state("succeeded")

    assert sorted(devices(farm, "job_1")) == [A, B]
    assert sorted(seen(farm, "job_1")[0].split(",")) == [A, B]


def test_a_larger_job_gets_its_turn_among_small_ones(farm: "Farm") -> None:
    start(farm, A, B, FERRY_IO_BYTES_PER_SECOND="4000000")
    for number in (1, 2):
        submit(farm, f"small_{number}", 1, target=f"small-{number}")
    until(lambda: isinstance(farm.store.get("small_1").state, Running) or None, seconds=30, what="a small one")
    submit(farm, "large", 2)
    for number in range(3, 7):
        submit(farm, f"small_{number}", 1, target=f"small-{number}")

    farm.until_state("succeeded", "large")
    waited = [event for event in farm.store.events("large") if event.event == "claimed"]
    assert len(waited) == 1
    for number in range(1, 7):
        farm.until_state("succeeded", f"small_{number}")


def test_a_gpu_job_on_a_host_without_one_waits_and_says_why(farm: "Farm") -> None:
    farm.start_worker()
    submit(farm, "job_1", 1)
    submit(farm, "job_2", 0)
    farm.until_state("succeeded", "job_2")

    state = farm.store.get("job_1").state
    assert isinstance(state, Queued)
    assert state.waiting == WaitsForSlot(resource_class="gpu", position=1, slots=0)


def test_a_job_for_more_gpus_than_a_host_has_waits_and_says_why(farm: "Farm") -> None:
    start(farm, A, B)
    submit(farm, "job_1", 3)
    submit(farm, "job_2", 1)
    farm.until_state("succeeded", "job_2")

    state = farm.store.get("job_1").state
    assert isinstance(state, Queued)
    assert isinstance(state.waiting, WaitsForSlot | WaitsForDevices)


def test_a_job_that_would_see_other_gpus_than_its_own_fails_and_says_so(farm: "Farm", tmp_path: Path) -> None:
    """A sitecustomize of the operator's that overrides what the worker set."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nCUDA_VISIBLE_DEVICES=GPU-other exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    code = (
        "import sys; from worker.dispatch import seen_gpus, work; "
        f"seen_gpus.sys = type(sys)('sys'); seen_gpus.sys.executable = {str(python)!r}; sys.exit(work.main([]))"
    )
    farm.start_worker(FERRY_GPU=A, FERRY_PRETEND_GPUS=A, code=code)
    submit(farm, "job_1", 1)

    def error() -> str | None:
        state = farm.store.get("job_1").state
        return state.last_error.message if isinstance(state, Queued) and state.last_error else None

    message = until(error, seconds=30, what=f"an error\n{farm.logs()}")
    assert "GPU-other" in message
    assert A in message


@pytest.mark.parametrize("gpu", ["GPU-c", "GPU-", "0"])
def test_a_worker_for_a_gpu_that_is_not_there_says_so(gpu: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "work"],
        cwd=PROJECT,
        env=os.environ
        | {"FERRY_GPU": gpu, "FERRY_PRETEND_GPUS": f"{A},{B}", "FERRY_BROKER_URL": "redis://127.0.0.1:1/0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "FERRY_GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_up_starts_a_worker_for_each_gpu_that_the_operator_leaves() -> None:
    environment = {"FERRY_PRETEND_GPUS": f"{A},{B}", "CUDA_VISIBLE_DEVICES": "1", "FERRY_ROOTS": "here=/tmp"}
    plan = read_arguments(["--slots", "0"], WorkerSettings.from_environment(environment))

    assert [gpu.uuid for gpu in plan.gpus] == [B]
    services = [service.name for group in Supervisor.of(plan, print).groups for service in group]
    assert services == ["broker", "api", "model-configs", "worker-gpu-0"]
