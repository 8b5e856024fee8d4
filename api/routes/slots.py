"""Slots: which workers are alive, and what each is pinned to."""

from fastapi import APIRouter

from worker.jobs.slots import WorkerSlot

from ..problems import problems
from ..surroundings import Around

router = APIRouter(prefix="/v1/slots", tags=["slots"])


@router.get("", summary="List the slots that are alive", responses=problems(503))
def list_slots(around: Around) -> tuple[WorkerSlot, ...]:
    """Each runs one job at a time: of class `cpu`, or, where it has a GPU, of the `gpu` classes."""
    return around.store.slots()
