"""A real model there and back over HTTP: every bit, its progress on the way, and what is left at the end."""

import json
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.acceptance.service import Service, running, until
from worker.jobs.spec import ExportSpec, ImportSpec
from worker.jobs.state import Job, Progress, Running, Succeeded

pytestmark = pytest.mark.slow


def tensor_bytes(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """dtype, shape and bytes by name; through the safetensors library."""
    read: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a dict
                tensor = opened.get_tensor(name)
                bits = tensor.view(-1).view(dtype=_UINT8).numpy().tobytes()
                read[name] = (str(tensor.dtype), tuple(tensor.shape), bits)
    return read


def succeeded(service: Service, spec: ImportSpec | ExportSpec) -> Job:
    with service.client() as client:
        job = client.wait(client.submit(spec).id)
    assert isinstance(job.state, Succeeded), job.state
    return job


def test_what_was_imported_comes_back_bit_for_bit(service: Service, smollm2: Path) -> None:
    succeeded(service, ImportSpec(source=f"models:{smollm2.name}", target="out:megatron"))
    succeeded(service, ExportSpec(source="out:megatron", target="out:hf"))

    assert tensor_bytes(service.out / "hf") == tensor_bytes(smollm2)
