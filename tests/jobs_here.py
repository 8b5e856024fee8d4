"""A job run in the test's own process, its output published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.engine.processes import CopyOptions
from worker.handlers.context import Answer, JobContext, Prepared
from worker.handlers.conversion import refuse_full_disk
from worker.handlers.model_configs import WarmModelConfigs
from worker.handlers.run import plan, run
from worker.jobs.locations import LocalPaths
from worker.jobs.setup_spec import SetupSpec
from worker.jobs.spec import JobSpec
from worker.jobs.state import CheckpointResult, Progress


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


def set_up(socket: Path, source: Path, target: Path, **fields: Any) -> CheckpointResult:
    """A setup, done."""
    outcome = do(SetupSpec(source=str(source), target=str(target), **fields), socket)
    assert isinstance(outcome, Prepared)
    return outcome.result


def planned_setup(source: Path, target: Path, **fields: Any) -> dict[str, Any]:
    """A setup, planned."""
    return plan(SetupSpec(source=str(source), target=str(target), **fields), LocalPaths(), CopyOptions(processes=1))
