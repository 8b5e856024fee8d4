"""A worker's slot: takes one job at a time from its claim to its settled outcome."""

import logging
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, assert_never

from ..checkpoints.publish import StagedFolder, published_manifest
from ..checkpoints.room import room_at
from ..jobs.errors import ConflictError, ErrorInfo, FerryError, TransientError, error_from_os
from ..jobs.slots import WorkerSlot
from ..jobs.state import CheckpointResult, Job, Queued, Running
from ..jobs.store import Broken, Claim, Done, JobStore, Lost, Outcome, Postponed, Returned, Stopped
from ..jobs.waiting import WaitsForDevices, WaitsForDisk
from ..settings import WorkerSettings
from .attempt import start_attempt
from .attempt_lines import Answered, End, Helped, Raised, Staged
from .handling import Connect, handle
from .helping import help_out
from .lease import Lease
from .memory import AttemptMemory
from .memory_group import MemoryGroup
from .partials import clear_attempts, holds_parts, target_path
from .watch import Died, Patience, Told, asked_to_leave, watch, watch_helper

log = logging.getLogger(__name__)

_DISK_SECONDS = 5.0
"""How soon a job that found a full disk is tried again."""
_DEVICES_SECONDS = 0.5
"""What a slot waits whose GPUs are kept for a larger job, lest it spin through its queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Runs jobs, each attempt in a forked process."""

    store: JobStore
    settings: WorkerSettings
    who: WorkerSlot
    model_configs: Path
    """Socket of the warm process that builds Megatron's config objects."""
    memory_group: MemoryGroup | None = None
    """The cgroup of its attempts, where there can be one."""
    connect: Connect | None = None
    """Opens another connection to the store; None: jobs are not shared with other slots."""

    def run_job(self, job_id: str) -> None:
        """What a message asks for. A duplicate finds nothing to claim; a lost store is the reaper's business."""
        try:
            claim = self.store.claim(job_id, self.who, lease_seconds=self.settings.lease_seconds)
            if claim is None:
                self._pass_over(job_id)
            else:
                self._work(claim)
        except FerryError as error:
            log.error("message_dropped job=%s error=%s", job_id, error)

    def _pass_over(self, job_id: str) -> None:
        job = self.store.get(job_id)
        log.info("nothing_to_do job=%s state=%s", job_id, job.state.state)
        if isinstance(job.state, Queued) and isinstance(job.state.waiting, WaitsForDevices):
            time.sleep(_DEVICES_SECONDS)
        elif isinstance(job.state, Running) and self.connect is not None:
            self._help(job, self.connect)

    def _help(self, job: Job, connect: Connect) -> None:
        """Write parts of a job that another slot runs."""
        if not self.store.parts(job.id):
            return
        memory = self._memory(job)
        attempt = start_attempt(partial(help_out, job, self.settings, connect), memory)
        try:
            with asked_to_leave() as leaving:
                end = watch_helper(attempt, leaving, memory)
        finally:
            attempt.close()
        log.info("job_helped job=%s end=%s", job.id, end)
        if isinstance(end, Helped) and end.more:
            self.store.invite(job.id)

    def _memory(self, job: Job) -> AttemptMemory:
        return AttemptMemory(job.request.memory_bytes or self.settings.memory_bytes, self.memory_group)

    def _work(self, claim: Claim) -> None:
        log.info("job_claimed job=%s attempt=%d", claim.job.id, claim.fence)
        lease = Lease(self.store, claim, self.settings.lease_seconds)
        outcome = self._adopted(claim) or self._attempted(lease)
        if outcome is not None and not self._goes_on(outcome, claim):
            clear_attempts(claim, self.settings.locations)
        if outcome is None or not lease.settle(outcome):
            log.warning("job_lost job=%s attempt=%d", claim.job.id, claim.fence)
        else:
            log.info("job_settled job=%s attempt=%d outcome=%s", claim.job.id, claim.fence, outcome)

    def _adopted(self, claim: Claim) -> Outcome | None:
        """The outcome of an earlier attempt that published its output and was lost before it could say so."""
        try:
            target = target_path(claim.job, self.settings.locations)
        except FerryError as error:
            return Broken(error=error.info)
        manifest = published_manifest(target) if target else None
        if manifest is None or manifest.get("job") != claim.job.id:
            return None
        log.info("output_adopted job=%s target=%s", claim.job.id, target)
        return Done(result=CheckpointResult.model_validate(manifest["result"]))

    def _attempted(self, lease: Lease) -> Outcome | None:
        """The outcome of a new attempt; None where the job is no longer ours to settle."""
        claim = lease.claim
        memory = self._memory(claim.job)
        attempt = start_attempt(partial(handle, lease, self.settings, self.model_configs, self.connect), memory)
        try:
            with asked_to_leave() as leaving:
                end = watch(attempt, lease, leaving, self._patience(claim), memory)
        finally:
            attempt.close()
        return self._outcome("out_of_memory" if _may_lack_memory(end) and memory.oom_killed() else end, lease)

    def _goes_on(self, outcome: Outcome, claim: Claim) -> bool:
        """Whether a later attempt may go on with what is written. A job that waits for room must not hold any."""
        match outcome:
            case Done() | Postponed():
                return False
            case Broken(error=error) if not error.retryable:
                return False
            case Broken() | Stopped() | Returned() | Lost():
                return holds_parts(claim, self.settings.locations)

    def _patience(self, claim: Claim) -> Patience:
        request = claim.job.request
        return Patience(
            timeout_seconds=request.timeout_seconds or self.settings.timeout_seconds,
            stall_seconds=request.stall_seconds or self.settings.stall_seconds,
        )

    def _outcome(self, end: End | Died | Told | WaitsForDisk, lease: Lease) -> Outcome | None:
        match end:
            case Answered(result=result):
                return Done(result=result)
            case Helped():
                raise AssertionError("an attempt at a job of its own helps nobody")
            case Staged():
                return self._published(end, lease)
            case Raised(error=error):
                return self._raised(error, lease)
            case Died(exit_code=code):
                return _died(code)
            case WaitsForDisk():
                return Postponed(waiting=end, seconds=_DISK_SECONDS)
            case "cancel":
                return Stopped()
            case "leaving":
                return Returned()
            case "fenced":
                return None
            case "timed_out" | "stalled":
                return Broken(error=_ran_out(end, self._patience(lease.claim)))
            case "out_of_memory":
                return Broken(error=_out_of_memory(lease.claim.job.request.memory_bytes or self.settings.memory_bytes))
            case _:
                assert_never(end)

    def _raised(self, error: ErrorInfo, lease: Lease) -> Outcome:
        match error.code:
            case "disk_full":
                return Postponed(waiting=self._full_disk(lease), seconds=_DISK_SECONDS)
            case "attempt_lost":  # one of its processes was killed
                return Lost(error=error)
            case _:
                return Broken(error=error)

    def _full_disk(self, lease: Lease) -> WaitsForDisk:
        """What an attempt waits for that met a full disk in the middle: others wrote there too."""
        target = target_path(lease.claim.job, self.settings.locations)
        assert target is not None
        space = room_at(target)
        needed = lease.needed_bytes or space.free_bytes + 1
        return WaitsForDisk(filesystem=space.filesystem, needed_bytes=needed, free_bytes=space.free_bytes)

    def _published(self, staged: Staged, lease: Lease) -> Outcome | None:
        """Publish, if the store confirms that the job is still ours."""
        verdict = lease.publish()
        if verdict != "go_on":
            return self._outcome(verdict, lease)
        try:
            StagedFolder(path=staged.folder, target=staged.target, replaces=staged.replaces).publish()
        except ConflictError as error:
            return self._adopted(lease.claim) or Broken(error=error.info)
        except OSError as error:
            return self._raised(error_from_os(error).info, lease)
        return Done(result=staged.result)


def _may_lack_memory(end: End | Died | Told | WaitsForDisk) -> bool:
    """Whether it may have ended because the kernel killed it, or a process that it relied on."""
    match end:
        case Died():
            return True
        case Raised(error=error):
            return error.code in ("attempt_lost", "internal")
        case _:
            return False


def _died(code: int) -> Outcome:
    """SIGKILL and SIGTERM come from outside; any other end without a word is the attempt's own fault."""
    error = _attempt_died(code)
    return Lost(error=error) if -code in (signal.SIGKILL, signal.SIGTERM) else Broken(error=error)


def _attempt_died(code: int) -> ErrorInfo:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return TransientError(
        "attempt_lost",
        "the attempt's process",
        found=f"its end by {how}",
        expected="an outcome",
        next_step="It is tried again; if it repeats, read the worker's log and the kernel's messages.",
    ).info


def _out_of_memory(limit_bytes: int | None) -> ErrorInfo:
    return TransientError(
        "out_of_memory",
        "the attempt",
        found="an end for want of memory" if limit_bytes is None else "more memory in use than it may have",
        expected="enough memory on this machine" if limit_bytes is None else f"at most {limit_bytes:,} bytes",
        next_step="It is tried again; if it repeats, run fewer jobs or copy processes beside it."
        if limit_bytes is None
        else "Give it more with `memory_bytes`, or run it with fewer copy processes.",
    ).info


def _ran_out(of: Literal["timed_out", "stalled"], patience: Patience) -> ErrorInfo:
    match of:
        case "timed_out":
            found = f"no end within {patience.timeout_seconds:g} s"
            next_step = "Give it more time with `timeout_seconds`, or look for what holds it up."
        case "stalled":
            found = f"no progress within {patience.stall_seconds:g} s"
            next_step = "Look for a storage that hangs; slow ones need a larger `stall_seconds`."
    return TransientError(of, "the attempt", found=found, expected="an end in time", next_step=next_step).info
