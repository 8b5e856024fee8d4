"""A worker's slot, as the store knows it: who runs jobs where, and on which GPU."""

from pydantic import BaseModel, ConfigDict


class WorkerSlot(BaseModel):
    """One worker process, which runs one job at a time. A slot without a GPU runs jobs of class `cpu`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker_id: str
    """Unlike any other running worker's."""
    host: str
    gpu: str | None = None
    """The UUID of the GPU that it is pinned to."""
    gpu_name: str | None = None
    version: str = ""
    """Of Ferry."""
