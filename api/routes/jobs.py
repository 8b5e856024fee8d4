"""Jobs: submit, look, list, cancel."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from worker.jobs.errors import BadInputError
from worker.jobs.events import JobEvent
from worker.jobs.spec import (
    AdapterExportSpec,
    AdapterExtractSpec,
    AdapterImportSpec,
    ConfigSpec,
    ExportSpec,
    ImportSpec,
    JobKind,
    JobRequest,
    JobSpec,
    MergeSpec,
    SetupSpec,
    VerifySpec,
)
from worker.jobs.state import TERMINAL, Job, StateName
from worker.jobs.store import JobFilter

from ..dry_run import plan_of, with_reservations
from ..job_list import JobList
from ..problems import problems
from ..submission import headers
from ..submission import submit as accept
from ..surroundings import Around, Surroundings
from . import examples

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


@router.post(
    "", summary="Submit a job", status_code=202, response_model=Job, responses=problems(409, 413, 415, 422, 503)
)
async def submit(
    body: Annotated[JobRequest, Body(openapi_examples=examples.SUBMIT)],
    around: Around,
    idempotency_key: Key = None,
    dry_run: Annotated[bool, Query(description="Answer 200 with the plan, and do nothing.")] = False,
) -> Response:
    """Accepts a job and answers at once; the job runs on a worker.

    With an `Idempotency-Key`, the same request answers the same job again, however often it is sent.
    """
    if dry_run:
        spec = await run_in_threadpool(_resolved, around, body.spec)
        async with around.planning:
            plan = await plan_of(spec)
        return JSONResponse(await run_in_threadpool(with_reservations, plan, around.store))
    job = await run_in_threadpool(accept, around, body, idempotency_key)
    return Response(job.model_dump_json(), 202, headers(job), "application/json")


@router.get("", summary="List jobs, newest first", responses=problems(422, 503))
def list_jobs(
    around: Around,
    state: StateName | None = None,
    kind: JobKind | None = None,
    label: Annotated[str | None, Query(description="`name:value`")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> JobList:
    page = around.store.list(JobFilter(state=state, kind=kind, label=_label(label)), cursor=cursor, limit=limit)
    return JobList(jobs=page.jobs, next_cursor=page.next_cursor, unreadable=page.unreadable)


@router.get("/{job_id}", summary="Show a job", response_model=Job, responses=problems(404, 503))
def show(job_id: str, around: Around, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """With `If-None-Match`, 304 while nothing has changed."""
    text = around.store.get(job_id).model_dump_json()
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    if tag in (if_none_match or ""):  # among others, or weakened by a proxy
        return Response(status_code=304, headers={"ETag": tag})
    return Response(text, media_type="application/json", headers={"ETag": tag})


@router.post("/{job_id}/cancel", summary="Cancel a job", status_code=202, responses=problems(404, 503))
def cancel(job_id: str, around: Around, response: Response) -> Job:
    """A waiting job ends at once, a running one within seconds; an ended one stays as it is (200)."""
    job = around.store.cancel(job_id)
    if job.state.state in TERMINAL and job.state.state != "cancelled":
        response.status_code = 200
    return job


@router.post("/{job_id}/retry", summary="Retry a job", status_code=202, responses=problems(404, 409, 422, 503))
def retry(job_id: str, around: Around) -> Job:
    """A failed or cancelled job waits again, with its history; one that waits or runs stays as it is."""
    job = around.store.get(job_id)
    if job.state.state in ("failed", "cancelled"):
        around.check(job.request.spec, sources_exist=not job.request.depends_on)
    return around.store.retry(job_id)


@router.get("/{job_id}/events", summary="A job's history", responses=problems(404, 422, 503))
def events(job_id: str, around: Around, after: Annotated[int, Query(ge=0)] = 0) -> tuple[JobEvent, ...]:
    """Oldest first, from the one after number `after`; the latest 500 are kept."""
    return around.store.events(job_id, after=after)


def _resolved(around: Surroundings, spec: JobSpec) -> JobSpec:
    """The spec with paths in place of locations, confined to the roots."""
    target = around.check(spec)
    source = str(around.roots.resolve_source(spec.source))
    match spec:
        case ConfigSpec():
            return spec.model_copy(update={"source": source})
        case ImportSpec():
            return spec.model_copy(update={"source": source, "target": str(target)})
        case ExportSpec(hf_config=hf_config):
            given = str(around.roots.resolve_source(hf_config)) if hf_config else None
            return spec.model_copy(update={"source": source, "target": str(target), "hf_config": given})
        case SetupSpec(hf_config=hf_config):
            given = str(around.roots.resolve_source(hf_config)) if hf_config else None
            return spec.model_copy(update={"source": source, "target": str(target), "hf_config": given})
        case MergeSpec(hf_config=hf_config, adapters=adapters):
            given = str(around.roots.resolve_source(hf_config)) if hf_config else None
            own = tuple(
                adapter.model_copy(update={"path": str(around.roots.resolve_source(adapter.path))})
                for adapter in adapters
            )
            found = {"source": source, "target": str(target), "hf_config": given, "adapters": own}
            return spec.model_copy(update=found)
        case AdapterExportSpec(base=base) | AdapterImportSpec(base=base):
            given = str(around.roots.resolve_source(base)) if base else None
            return spec.model_copy(update={"source": source, "target": str(target), "base": given})
        case AdapterExtractSpec(tuned=tuned, hf_config=hf_config):
            given = str(around.roots.resolve_source(hf_config)) if hf_config else None
            own = {"tuned": str(around.roots.resolve_source(tuned)), "hf_config": given}
            return spec.model_copy(update={"source": source, "target": str(target), **own})
        case VerifySpec():
            return spec  # it has no plan: the answer says so


def _label(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, separator, value = text.partition(":")
    if not separator:
        raise BadInputError(
            "bad_request",
            "query parameter 'label'",
            found=repr(text),
            expected="name:value",
            next_step="Put a colon between the label's name and its value.",
        )
    return name, value
