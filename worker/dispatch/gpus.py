"""The GPUs of this host, as NVML tells them; or pretended ones, where a host without shall act as one with."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pynvml

from ..jobs.errors import BadInputError

log = logging.getLogger(__name__)

_nvml: Any = pynvml  # It ships no types.


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device, by the name that CUDA_VISIBLE_DEVICES takes."""

    uuid: str
    name: str


def find_gpus(*, pretended: Sequence[str] = (), visible: str | None = None) -> tuple[Gpu, ...]:
    """All of this host, in NVML's order, or those that `visible` (CUDA_VISIBLE_DEVICES) leaves; none without a driver.

    Devices in MIG mode are left out: CUDA gives a process one slice at most, and a slice is no whole GPU.
    """
    found = tuple(Gpu(uuid, "pretended") for uuid in pretended) or tuple(_of_nvml())
    return found if visible is None else tuple(_chosen(found, visible))


def pinned(named: str, *, pretended: Sequence[str] = ()) -> tuple[Gpu, int]:
    """The GPU of this name, or beginning of one, and how many the host has; BadInputError without such a one."""
    found = find_gpus(pretended=pretended)
    match [gpu for gpu in found if gpu.uuid.startswith(named)]:
        case [gpu]:
            return gpu, len(found)
        case several:
            raise BadInputError(
                "bad_request",
                f"environment variable FERRY_GPU, {named!r}",
                found=f"{len(several)} such GPUs among {', '.join(gpu.uuid for gpu in found) or 'none at all'}",
                expected="the UUID of a GPU of this host",
                next_step="`nvidia-smi -L` lists them.",
            )


def _chosen(found: Sequence[Gpu], visible: str) -> Iterator[Gpu]:
    """As CUDA reads it: numbers or beginnings of UUIDs, up to the first that names nothing."""
    for entry in visible.split(","):
        text = entry.strip()
        if text.isdecimal() and int(text) < len(found):
            yield found[int(text)]
        elif text.startswith("GPU-") and (gpu := next((gpu for gpu in found if gpu.uuid.startswith(text)), None)):
            yield gpu
        else:
            return


def _of_nvml() -> Iterator[Gpu]:
    try:
        _nvml.nvmlInit()
    except _nvml.NVMLError as error:
        if not isinstance(error, _nvml.NVMLError_LibraryNotFound):
            log.warning("gpus_unknown error=%s", error)
        return
    try:
        for number in range(_nvml.nvmlDeviceGetCount()):
            handle = _nvml.nvmlDeviceGetHandleByIndex(number)
            gpu = Gpu(_nvml.nvmlDeviceGetUUID(handle), _nvml.nvmlDeviceGetName(handle))
            if _in_slices(handle):
                log.warning("gpu_left_out uuid=%s reason=MIG", gpu.uuid)
            else:
                yield gpu
    finally:
        with suppress(_nvml.NVMLError):
            _nvml.nvmlShutdown()


def _in_slices(handle: Any) -> bool:
    try:
        current, _ = _nvml.nvmlDeviceGetMigMode(handle)
    except _nvml.NVMLError:
        return False  # It knows no MIG.
    return current == _nvml.NVML_DEVICE_MIG_ENABLE
