"""What a worker is told by its environment: read once, in main, and passed down."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .jobs.errors import BadInputError
from .jobs.locations import Roots
from .jobs.roots import Root, parse_roots, paths_of
from .jobs.store import KEEP_PARTIALS_SECONDS, RETENTION_SECONDS
from .stores.servers import read_servers

_COPY_PROCESSES_AT_MOST = 4
"""More help only where the storage is faster than most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """One for each process that `python -m worker` starts."""

    data: Path
    """Holds the embedded broker's files, logs and sockets."""
    broker_url: str | None
    """None: the embedded broker under `data`."""
    roots: Mapping[str, Root]
    model_configs: Path | None
    """Socket of a warm process for Megatron's config classes that is there already; None: the worker starts its own."""
    copy_processes: int
    io_bytes_per_second: int | None
    """A limit for each root that has none of its own."""
    lease_seconds: float
    grace_seconds: float
    """How long a worker that is asked to stop lets its job go on before it returns the job to the queue."""
    store_url: str | None = None
    """None: the broker holds the jobs too."""
    timeout_seconds: float | None = None
    """How long an attempt may take where its job says nothing."""
    stall_seconds: float = 1800.0
    """How long an attempt may live without progress where its job says nothing."""
    memory_bytes: int | None = None
    """What an attempt's processes may hold together where its job says nothing."""
    retention_seconds: float = RETENTION_SECONDS
    """How long ended jobs are remembered."""
    keep_partials_seconds: float = KEEP_PARTIALS_SECONDS
    """How long what a failed or cancelled job wrote is kept for a retry."""
    gpu: str | None = None
    """UUID of the GPU that this worker is pinned to; None: a slot for jobs that need none."""
    host_gpus: int | None = None
    """How many GPUs the slots of this host have: up to so many, one job may lease. None: as many as there are."""
    visible_devices: str | None = None
    """CUDA's own variable: what the operator leaves of the host's GPUs."""
    pretend_gpus: tuple[str, ...] = ()
    """UUIDs of GPUs that this host shall act as if it had."""
    allow_pickle: bool = False
    """Whether Megatron's older `torch` checkpoints are read, whose index is a pickle."""

    @property
    def locations(self) -> Roots:
        """What its jobs may use."""
        return Roots(paths_of(self.roots), allow_pickle=self.allow_pickle)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "WorkerSettings":
        """BadInputError names the variable that cannot be read."""
        found = os.environ if environ is None else environ
        broker_url, store_url = read_servers(found)
        return cls(
            data=_read(found, "FERRY_DATA", _path, Path.home() / ".ferry"),
            broker_url=broker_url,
            store_url=store_url,
            roots=_read(found, "FERRY_ROOTS", parse_roots, {}),
            model_configs=_read(found, "FERRY_MODEL_CONFIGS", _path, None),
            timeout_seconds=_read(found, "FERRY_TIMEOUT_SECONDS", _positive_seconds, None),
            stall_seconds=_read(found, "FERRY_STALL_SECONDS", _positive_seconds, 1800.0),
            memory_bytes=_read(found, "FERRY_MEMORY_BYTES", _count, None),
            retention_seconds=_read(found, "FERRY_RETENTION_SECONDS", _positive_seconds, RETENTION_SECONDS),
            keep_partials_seconds=_read(found, "FERRY_KEEP_PARTIALS_SECONDS", _seconds, KEEP_PARTIALS_SECONDS),
            gpu=_read(found, "FERRY_GPU", str, None),
            host_gpus=_read(found, "FERRY_HOST_GPUS", _count, None),
            visible_devices=found.get("CUDA_VISIBLE_DEVICES"),
            pretend_gpus=_read(found, "FERRY_PRETEND_GPUS", _names, ()),
            allow_pickle=_read(found, "FERRY_ALLOW_PICKLE", _switch, False),
            copy_processes=_read(found, "FERRY_COPY_PROCESSES", _count, _default_copy_processes()),
            io_bytes_per_second=_read(found, "FERRY_IO_BYTES_PER_SECOND", _count, None),
            lease_seconds=_read(found, "FERRY_LEASE_SECONDS", _lease_seconds, 15.0),
            # Below the 30 s that Kubernetes leaves to a pod, so that the job is back in the queue by then.
            grace_seconds=_read(found, "FERRY_GRACE_SECONDS", _seconds, 20.0),
        )


def child_environment(changes: Mapping[str, str], *, unless_set: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, changed: what a service's processes are started with."""
    return {**unless_set, **os.environ, **changes}


def see_only(devices: Sequence[str]) -> None:
    """Show these GPUs alone to this process and those that it starts. CUDA looks when it is first used."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)


def let_megatron_run_alone() -> None:
    """In a process that builds one model after another: each names its attention backend here, and refuses another's.

    gloo is told to stay on this machine.
    """
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        os.environ.pop(name, None)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"


def compute_plainly() -> None:
    """In a process that has not computed yet: fp32 products stay in fp32, whichever library's kernel makes them.

    Nothing is compiled first, which takes longer than a few prompts do.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    os.environ["TORCHDYNAMO_DISABLE"] = "1"


def mark_children(name: str, value: str) -> None:
    """Put a mark in the environment of what this process starts."""
    os.environ[name] = value


def stop_softly_on_sigterm() -> None:
    """Before Celery is imported: it reads this once. Without it, SIGTERM waits for a running job without end."""
    os.environ["REMAP_SIGTERM"] = "SIGQUIT"


def _read[T](environ: Mapping[str, str], name: str, parse: Callable[[str], T], default: T) -> T:
    text = environ.get(name)
    if not text:
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise BadInputError(
            "bad_request",
            f"environment variable {name}",
            found=repr(text),
            expected=str(error),
            next_step="Correct or unset it.",
        ) from error


def _default_copy_processes() -> int:
    return min(os.cpu_count() or 1, _COPY_PROCESSES_AT_MOST)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("1 or 0")
    return text == "1"


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError("a number of seconds")
    return seconds


def _positive_seconds(text: str) -> float:
    if _seconds(text) == 0:
        raise ValueError("a number of seconds above 0")
    return _seconds(text)


def _lease_seconds(text: str) -> float:
    if _seconds(text) < 1:
        raise ValueError("a second or more: heartbeats need time")
    return _seconds(text)
