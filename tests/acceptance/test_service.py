"""The service on a real model: there and back over HTTP, kills in the middle, nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from api.client import Client
from tests.acceptance.service import Service, until
from worker.jobs.spec import ConfigSpec, ExportSpec, ImportSpec
from worker.jobs.state import CheckpointResult, ConfigResult, Job, Running, Succeeded

pytestmark = pytest.mark.slow

MakeService = Callable[..., Service]
MakeClient = Callable[[Service], Client]
SLOW = {"FERRY_IO_BYTES_PER_SECOND": str(60 * 10**6)}
"""The model's 269 MB take some 4 s: time enough for a kill in the middle."""


def offer(service: Service, smollm2: Path) -> None:
    """The model inside the service's root, without a copy where both lie on one file system."""
    shutil.copytree(smollm2, service.root / "hf", copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def copying(client: Client, job_id: str) -> Job | None:
    job = client.get(job_id)
    return job if isinstance(job.state, Running) and job.state.progress.done_bytes > 10**7 else None


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert right[name].dtype == tensor.dtype
        assert torch.equal(right[name].view(torch.int16), tensor.view(torch.int16)), name


def assert_ended(processes: list[psutil.Process]) -> None:
    def lives(process: psutil.Process) -> bool:
        try:
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    until(lambda: not any(map(lives, processes)), seconds=10, what=f"the end of {processes}")


def test_a_model_goes_there_and_back_over_http(make_service: MakeService, clients: MakeClient, smollm2: Path) -> None:
    service = make_service()
    offer(service, smollm2)
    client = clients(service)

    config = client.wait(client.submit(ConfigSpec(source="data:hf")).id)
    there = client.wait(client.submit(ImportSpec(source="data:hf", target="data:mcore")).id)
    back = client.wait(client.submit(ExportSpec(source="data:mcore", target="data:back")).id)

    assert isinstance(config.state, Succeeded)
    assert isinstance(config.state.result, ConfigResult)
    assert config.state.result.megatron_config["transformer"]["num_layers"] == 30
    assert there.state.state == "succeeded", there.state
    assert isinstance(back.state, Succeeded), back.state
    assert isinstance(back.state.result, CheckpointResult)
    assert_same_weights(smollm2, service.root / "back")
    assert json.loads((service.root / "mcore" / "model_config.json").read_text()) == {
        **config.state.result.megatron_config
    }
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (service.root / "back" / name).read_bytes() == (smollm2 / name).read_bytes()
    assert sorted(os.listdir(service.root)) == ["back", "hf", "mcore"]


def test_progress_is_visible_while_a_job_runs(make_service: MakeService, clients: MakeClient, smollm2: Path) -> None:
    service = make_service(**SLOW)
    offer(service, smollm2)
    client = clients(service)
    seen: set[int] = set()

    def look(job: Job) -> None:
        if isinstance(job.state, Running):
            seen.add(job.state.progress.done_bytes)

    client.wait(client.submit(ImportSpec(source="data:hf", target="data:mcore")).id, look)

    assert len(seen) > 5
    assert 0 < max(seen) <= 300 * 10**6


@pytest.mark.parametrize("role", ["worker", "broker", "api", "supervisor"])
def test_a_kill_in_the_middle_of_a_copy_leaves_no_target_and_the_job_finishes(
    make_service: MakeService, clients: MakeClient, smollm2: Path, role: str
) -> None:
    service = make_service(**SLOW)
    offer(service, smollm2)
    client = clients(service)
    job_id = client.submit(ImportSpec(source="data:hf", target="data:mcore")).id
    until(lambda: copying(client, job_id), seconds=60, what="a copy under way")
    members = service.members()

    service.find(role).kill()

    assert not (service.root / "mcore").exists()
    if role == "supervisor":
        assert_ended(members)
        assert not (service.root / "mcore").exists()
        service.start()
    ended = client.wait(job_id)
    assert ended.state.state == "succeeded", ended.state
    assert ended.id == job_id
    assert sorted(os.listdir(service.root)) == ["hf", "mcore"]
    manifest = json.loads((service.root / "mcore" / "manifest.json").read_text())
    assert manifest["job"] == job_id
    back = client.wait(client.submit(ExportSpec(source="data:mcore", target="data:back")).id)
    assert back.state.state == "succeeded", back.state
    assert_same_weights(smollm2, service.root / "back")


def test_a_cancelled_copy_ends_within_seconds_and_leaves_nothing(
    make_service: MakeService, clients: MakeClient, smollm2: Path
) -> None:
    service = make_service(**SLOW)
    offer(service, smollm2)
    client = clients(service)
    job_id = client.submit(ImportSpec(source="data:hf", target="data:mcore")).id
    until(lambda: copying(client, job_id), seconds=60, what="a copy under way")
    asked = time.monotonic()

    client.cancel(job_id)

    assert client.wait(job_id).state.state == "cancelled"
    assert time.monotonic() - asked < 5
    until(lambda: os.listdir(service.root) == ["hf"], seconds=5, what="the partial folder's end")


def test_history_survives_a_restart(make_service: MakeService, clients: MakeClient, smollm2: Path) -> None:
    service = make_service()
    offer(service, smollm2)
    client = clients(service)
    before = client.wait(client.submit(ImportSpec(source="data:hf", target="data:mcore")).id)

    service.stop()
    service.start()

    assert client.get(before.id) == before
    assert [job.id for job in client.list(state="succeeded")] == [before.id]


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_the_service_leaves_no_process_behind(make_service: MakeService, how: str) -> None:
    service = make_service()
    members = service.members()
    assert len(members) > 4

    getattr(service.find("supervisor"), how)()

    assert_ended(members)


def test_the_command_line_uses_the_service(make_service: MakeService, smollm2: Path) -> None:
    service = make_service()
    offer(service, smollm2)

    def ferry(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-c", "from api.cli import main; main()", *arguments]
        environment = os.environ | {"FERRY_URL": service.url}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=service.root, timeout=120)

    waited = ferry("import", "hf", "mcore")
    left = ferry("export", "data:mcore", "data:back", "--no-wait")
    job_id = left.stdout.strip()
    until(lambda: '"succeeded"' in ferry("show", job_id, "--json").stdout, seconds=60, what="the export")
    listed = ferry("jobs", "--kind", "export")
    again = ferry("import", "hf", "mcore")
    planned = ferry("import", "hf", "other", "--plan")
    outside = ferry("import", "/usr", "mcore2")

    assert waited.returncode == 0, waited.stderr
    assert str(service.root / "mcore") in waited.stdout
    assert job_id in listed.stdout
    assert_same_weights(smollm2, service.root / "back")
    assert (again.returncode, outside.returncode) == (2, 2)
    assert "something already there" in again.stderr
    assert "under no root" in outside.stderr
    assert json.loads(planned.stdout)["bytes"] > 269 * 10**6
    assert not (service.root / "other").exists()


def test_a_bad_source_fails_its_job_with_the_reason_and_is_not_tried_again(
    make_service: MakeService, clients: MakeClient, smollm2: Path
) -> None:
    service = make_service()
    shutil.copytree(smollm2, service.root / "hf")
    config = json.loads((smollm2 / "config.json").read_text())
    (service.root / "hf" / "config.json").write_text(json.dumps(config | {"surprise": 1}))
    client = clients(service)

    ended = client.wait(client.submit(ImportSpec(source="data:hf", target="data:mcore")).id)

    assert ended.state.state == "failed"
    assert ended.state.error.code == "unknown_config_field"
    assert "surprise" in ended.state.error.thing
    assert ended.attempts == 1
    assert os.listdir(service.root) == ["hf"]


def test_a_second_service_on_the_same_data_folder_is_refused(make_service: MakeService) -> None:
    service = make_service()
    command = [sys.executable, "-P", "-m", "worker", "up", "--data", str(service.folder / "service"), "--port", "0"]

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=service.root, env=service.clean_environment()
    )

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert service.url in done.stderr
