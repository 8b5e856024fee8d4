"""`ferry jobs`, `show`, `cancel`, `retry` and `families`: what there is, and what becomes of it."""

import sys
from typing import Annotated

import typer

from worker.jobs.errors import ErrorInfo

from ..settings import server_url
from .arguments import AsJson, Server
from .running import print_json


def list_jobs(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="config, import, export, merge, adapter, setup or verify.")] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME:VALUE", help="Jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.")] = 50,
    as_json: AsJson = False,
    server: Server = None,
) -> None:
    """List jobs, newest first."""
    from ..client import Client
    from .tables import print_jobs

    with Client(server or server_url()) as client:
        found = list(client.list(state=state, kind=kind, label=label, limit=limit, on_unreadable=_say_left_out))
    if as_json:
        print_json([job.model_dump(mode="json") for job in found])
    else:
        print_jobs(found)


def _say_left_out(why: ErrorInfo) -> None:
    sys.stderr.write(f"A job is left out. {why.message}\n")


def show(job_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False, server: Server = None) -> None:
    """Show one job."""
    from ..client import Client
    from .tables import print_job

    with Client(server or server_url()) as client:
        job = client.get(job_id)
    if as_json:
        print_json(job.model_dump(mode="json"))
    else:
        print_job(job)


def cancel(job_id: Annotated[str, typer.Argument(metavar="ID")], server: Server = None) -> None:
    """End a job that waits or runs; what it wrote is kept for a while, for a retry."""
    from ..client import Client
    from .tables import print_job

    with Client(server or server_url()) as client:
        print_job(client.cancel(job_id))


def retry(job_id: Annotated[str, typer.Argument(metavar="ID")], server: Server = None) -> None:
    """Queue a failed or cancelled job again."""
    from ..client import Client
    from .tables import print_job

    with Client(server or server_url()) as client:
        print_job(client.retry(job_id))


def list_families(as_json: AsJson = False) -> None:
    """List the models that can be converted."""
    from .explained import print_families
    from .local import families

    found = families()
    if as_json:
        print_json(found)
    else:
        print_families(found)
