"""The composition root of the HTTP API."""

from fastapi import FastAPI

from worker.jobs.locations import Roots
from worker.jobs.store import JobStore

from .body_limit import BodyLimit
from .ferry_app import FerryApp
from .problems import add_problem_handlers
from .routes import health, jobs, slots
from .settings import ApiSettings
from .submit_lane import SubmitLane
from .surroundings import Surroundings


def create_app(settings: ApiSettings, store: JobStore | None = None) -> FastAPI:
    """The app over the store that the settings name, or over a given one."""
    app = FerryApp(
        title="Ferry",
        summary="Moves model checkpoints between Hugging Face and Megatron-Core.",
        description="Submit a job, look at it until it ends. Errors are RFC 9457 problem documents.",
        version="1",
    )
    around = Surroundings(store=store or _connect(settings), roots=Roots(settings.roots))
    app.state.surroundings = around
    app.include_router(jobs.router)
    app.include_router(slots.router)
    app.include_router(health.router)
    app.add_middleware(BodyLimit)
    app.lane = SubmitLane(around)
    add_problem_handlers(app)
    return app


def _connect(settings: ApiSettings) -> JobStore:
    from worker.stores.redis_store import RedisStore
    from worker.stores.server_check import check_server
    from worker.stores.servers import Servers

    servers = Servers.of(settings.broker_url, settings.store_url)
    check_server(servers)
    return RedisStore.from_url(servers.store_url, limits=settings.limits, sends_messages=servers.store_sends_messages)
