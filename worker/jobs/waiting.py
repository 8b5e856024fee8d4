"""Why a queued job waits: a union on `reason`."""

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WaitsForSlot(_Frozen):
    """For a free slot of its class."""

    reason: Literal["slot"] = "slot"
    resource_class: str
    position: int
    """1: the next one of its class."""
    slots: int
    """How many jobs of this class the workers that are alive can run at once; 0: no worker offers it."""


class WaitsForDevices(_Frozen):
    """For enough free GPUs on one host; the GPUs of `host` are kept for it as they become free."""

    reason: Literal["devices"] = "devices"
    needed: int
    free: int
    host: str


class WaitsForRetry(_Frozen):
    """For the end of the pause after a failed attempt."""

    reason: Literal["retry"] = "retry"
    until: AwareDatetime


class WaitsForJobs(_Frozen):
    """For other jobs to succeed."""

    reason: Literal["dependency"] = "dependency"
    jobs: tuple[str, ...]


class WaitsForDisk(_Frozen):
    """For room on a disk, other running jobs' reservations counted in."""

    reason: Literal["disk"] = "disk"
    filesystem: str
    needed_bytes: int
    free_bytes: int
    """Free now, less what running jobs have still to write."""


Waiting = Annotated[
    WaitsForSlot | WaitsForDevices | WaitsForRetry | WaitsForJobs | WaitsForDisk, Field(discriminator="reason")
]
