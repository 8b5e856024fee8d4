"""Finding GPUs: what NVML tells, what CUDA_VISIBLE_DEVICES leaves, and hosts without either."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker.dispatch import gpus
from worker.dispatch.gpus import Gpu, find_gpus

A, B, C = (Gpu(f"GPU-{letter}1234567", "H100") for letter in "abc")


class NvmlError(Exception):
    pass


class NoLibrary(NvmlError):
    pass


def nvml(*devices: Gpu, sliced: tuple[str, ...] = (), failing: NvmlError | None = None) -> Any:
    """As NVML answers on a host with these devices."""

    def init() -> None:
        if failing:
            raise failing

    def mig_mode(device: Gpu) -> tuple[int, int]:
        if device == devices[0]:
            raise NvmlError("not supported")
        return (1, 1) if device.uuid in sliced else (0, 0)

    return SimpleNamespace(
        NVMLError=NvmlError,
        NVMLError_LibraryNotFound=NoLibrary,
        NVML_DEVICE_MIG_ENABLE=1,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(devices),
        nvmlDeviceGetHandleByIndex=lambda number: devices[number],
        nvmlDeviceGetUUID=lambda device: device.uuid,
        nvmlDeviceGetName=lambda device: device.name,
        nvmlDeviceGetMigMode=mig_mode,
    )


def test_all_of_the_host_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_nvml", nvml(A, B))
    assert find_gpus() == (A, B)


def test_a_gpu_cut_into_slices_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_nvml", nvml(A, B, C, sliced=(B.uuid,)))
    assert find_gpus() == (A, C)


@pytest.mark.parametrize("error", [NoLibrary("no libnvidia-ml.so.1"), NvmlError("driver mismatch")])
def test_a_host_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch, error: NvmlError) -> None:
    monkeypatch.setattr(gpus, "_nvml", nvml(failing=error))
    assert find_gpus() == ()


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1", (B,)),
        ("2,0", (C, A)),
        ("0,7,1", (A,)),
        ("GPU-b, GPU-a12", (B, A)),
        ("GPU-x,0", ()),
    ],
)
def test_what_the_operator_hides_stays_hidden_as_cuda_reads_it(
    monkeypatch: pytest.MonkeyPatch, visible: str, left: tuple[Gpu, ...]
) -> None:
    monkeypatch.setattr(gpus, "_nvml", nvml(A, B, C))
    assert find_gpus(visible=visible) == left


def test_pretended_ones_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_nvml", nvml(A))
    assert [gpu.uuid for gpu in find_gpus(pretended=("GPU-p", "GPU-q"))] == ["GPU-p", "GPU-q"]
