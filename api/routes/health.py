"""Is it alive, and can it take jobs?"""

from fastapi import APIRouter

from ..problems import problems
from ..surroundings import Around

router = APIRouter(prefix="/v1/health", tags=["health"])


@router.get("", summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/ready", summary="The job store answers too", responses=problems(503))
def ready(around: Around) -> dict[str, str]:
    """503 while the store cannot be reached."""
    around.store.ping()
    return {"status": "ready"}
