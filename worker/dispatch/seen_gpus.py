"""What CUDA really shows to a process, whatever was meant: asked in one that ends, since CUDA survives no fork."""

import ctypes
import json
import os
import subprocess
import sys
import uuid
from typing import NoReturn

_SAY_VISIBLE = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))"


def seen_gpus() -> tuple[str, ...]:
    """UUIDs of the GPUs that a program started now would see; OSError where the driver gives no answer."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _tell(writing)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    if not text:
        raise OSError("the CUDA driver gives no answer")
    return tuple(json.loads(text))


def seen_pretended() -> tuple[str, ...]:
    """The same among pretended GPUs: what a new program finds in its environment."""
    found = subprocess.run([sys.executable, "-ISc", _SAY_VISIBLE], capture_output=True, text=True, check=True)
    return tuple(name for name in found.stdout.strip().split(",") if name)


def _tell(writing: int) -> NoReturn:
    code = 1
    try:
        os.write(writing, json.dumps(_ask_driver()).encode())
        code = 0
    finally:
        os._exit(code)


def _ask_driver() -> list[str]:
    cuda = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []  # No device at all is an error to cuInit.
    return [_uuid(cuda, number) for number in range(count.value)]


def _uuid(cuda: ctypes.CDLL, number: int) -> str:
    name = (ctypes.c_ubyte * 16)()
    # The ordinal of a device is its handle.
    if cuda.cuDeviceGetUuid(ctypes.byref(name), number) != 0:
        raise OSError(f"CUDA device {number} has no UUID")
    return f"GPU-{uuid.UUID(bytes=bytes(name))}"
