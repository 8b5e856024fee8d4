"""A worker's slot: takes one job at a time from its claim to its settled outcome."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

from ..checkpoints.publish import StagedFolder, published_manifest
from ..jobs.errors import ConflictError, ErrorInfo, FerryError, TransientError, error_from_os
from ..jobs.locations import Roots
from ..jobs.state import CheckpointResult, Progress
from ..jobs.store import Broken, Claim, Done, JobStore, Outcome, Returned, Stopped
from ..settings import WorkerSettings
from .attempt import start_attempt
from .attempt_lines import Answered, End, Raised, Staged
from .handling import handle
from .lease import Lease
from .partials import clear_attempt, clear_lost_attempts, target_path
from .watch import Died, Told, asked_to_leave, watch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Runs jobs, each attempt in a forked process. A slot pinned to a GPU will carry it here, for its attempts."""

    store: JobStore
    settings: WorkerSettings
    worker_id: str
    """Unlike any other running worker's."""
    model_configs: Path
    """Socket of the warm process that builds Megatron's config objects."""

    def run_job(self, job_id: str) -> None:
        """What a message asks for. A duplicate finds nothing to claim; a lost store is the reaper's business."""
        try:
            claim = self.store.claim(job_id, self.worker_id, lease_seconds=self.settings.lease_seconds)
            if claim is None:
                log.info("nothing_to_do job=%s", job_id)
                clear_lost_attempts(self.store.get(job_id), self._roots)
            else:
                self._work(claim)
        except FerryError as error:
            log.error("message_dropped job=%s error=%s", job_id, error)

    @property
    def _roots(self) -> Roots:
        return Roots(self.settings.roots)

    def _work(self, claim: Claim) -> None:
        log.info("job_claimed job=%s attempt=%d", claim.job.id, claim.fence)
        lease = Lease(self.store, claim, self.settings.lease_seconds)
        clear_lost_attempts(claim.job, self._roots)
        outcome = self._adopted(claim) or self._attempted(lease)
        if outcome is None or not lease.settle(outcome):
            log.warning("job_lost job=%s attempt=%d", claim.job.id, claim.fence)
        else:
            log.info("job_settled job=%s attempt=%d outcome=%s", claim.job.id, claim.fence, outcome)

    def _adopted(self, claim: Claim) -> Outcome | None:
        """The outcome of an earlier attempt that published its output and was lost before it could say so."""
        try:
            target = target_path(claim.job, self._roots)
        except FerryError as error:
            return Broken(error=error.info)
        manifest = published_manifest(target) if target else None
        if manifest is None or manifest.get("job") != claim.job.id:
            return None
        log.info("output_adopted job=%s target=%s", claim.job.id, target)
        return Done(result=CheckpointResult.model_validate(manifest["result"]))

    def _attempted(self, lease: Lease) -> Outcome | None:
        """The outcome of a new attempt; None where the job is no longer ours to settle."""
        attempt = start_attempt(partial(handle, lease.claim, self.settings, self.model_configs))
        try:
            with asked_to_leave() as leaving:
                end = watch(attempt, lease, leaving)
        finally:
            attempt.close()
        outcome = self._outcome(end, lease)
        clear_attempt(lease.claim, self._roots)
        return outcome

    def _outcome(self, end: End | Died | Told, lease: Lease) -> Outcome | None:
        match end:
            case Answered(result=result):
                return Done(result=result)
            case Staged():
                return self._published(end, lease)
            case Raised(error=error):
                return Broken(error=error)
            case Died(exit_code=code):
                return Broken(error=_attempt_died(code))
            case "cancel":
                return Stopped()
            case "leaving":
                return Returned()
            case "fenced":
                return None
            case _:
                assert_never(end)

    def _published(self, staged: Staged, lease: Lease) -> Outcome | None:
        """Publish, if the store confirms that the job is still ours."""
        total = staged.result.bytes
        verdict = lease.confirm(Progress(phase="finalizing", done_bytes=total, total_bytes=total))
        if verdict != "go_on":
            return self._outcome(verdict, lease)
        try:
            StagedFolder(path=staged.folder, target=staged.target).publish()
        except ConflictError as error:
            return self._adopted(lease.claim) or Broken(error=error.info)
        except OSError as error:
            return Broken(error=error_from_os(error).info)
        return Done(result=staged.result)


def _attempt_died(code: int) -> ErrorInfo:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return TransientError(
        "attempt_lost",
        "the attempt's process",
        found=f"its end by {how} (signal 9 is often the kernel's, for want of memory)",
        expected="an outcome",
        next_step="It is tried again; if it repeats, read the worker's log and the kernel's messages.",
    ).info
