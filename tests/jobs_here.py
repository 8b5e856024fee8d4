"""A job run in the test's own process, its output published."""

from collections.abc import Callable
from pathlib import Path

from worker.handlers.context import Answer, JobContext, Prepared
from worker.handlers.conversion import refuse_full_disk
from worker.handlers.model_configs import WarmModelConfigs
from worker.handlers.run import run
from worker.jobs.locations import LocalPaths
from worker.jobs.spec import JobSpec
from worker.jobs.state import Progress


def do(
    spec: JobSpec,
    socket: Path,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    allow_pickle: bool = False,
    gpu: bool = False,
) -> Answer | Prepared:
    """With two copy processes; configs are built by the warm process at `socket`."""
    context = JobContext(
        locations=LocalPaths(allow_pickle),
        job_id="job",
        staging_suffix="test",
        report=report,
        reserve=refuse_full_disk,
        model_configs=WarmModelConfigs(socket),
        copy_processes=2,
        gpu=gpu,
    )
    outcome = run(spec, context)
    if isinstance(outcome, Prepared):
        outcome.staged.publish()
    return outcome
