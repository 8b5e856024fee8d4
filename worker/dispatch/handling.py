"""What an attempt does: run the job's handler, tell its progress, and turn whatever it raises into its end."""

import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoints.room import Room
from ..handlers.context import Answer, JobContext, Prepared
from ..handlers.model_configs import WarmModelConfigs
from ..handlers.run import run
from ..jobs.errors import ErrorInfo, FerryError, InternalError, TransientError, error_from_os
from ..jobs.state import Progress
from ..jobs.store import Claim, JobStore
from ..settings import WorkerSettings, see_only
from .attempt_lines import Answered, End, Moved, Needs, Raised, Sees, Staged, encode
from .lease import Lease
from .part_board import StoreBoard
from .partials import earlier_folders
from .root_rules import RootRules
from .seen_gpus import seen_gpus, seen_pretended

Connect = Callable[[], JobStore]
"""A store of the process's own: what was connected before a fork is its parent's."""


def handle(lease: Lease, settings: WorkerSettings, model_configs: Path, connect: Connect | None, telling: int) -> None:
    """Run the job, from claim to its end, and tell everything on the descriptor `telling`."""
    claim = lease.claim

    def report(progress: Progress) -> None:
        os.write(telling, encode(Moved(progress=progress)))

    def reserve(room: Room, needed_bytes: int) -> None:
        needs = Needs(filesystem=room.filesystem, needed_bytes=needed_bytes, free_bytes=room.free_bytes)
        os.write(telling, encode(needs))

    see_only(claim.devices)
    context = JobContext(
        locations=settings.locations,
        job_id=claim.job.id,
        staging_suffix=f"{claim.job.id}-{claim.fence}",
        report=report,
        reserve=reserve,
        model_configs=WarmModelConfigs(model_configs),
        copy_processes=settings.copy_processes,
        gpu=bool(claim.devices) and not settings.pretend_gpus,
        permit=lease.permit,
        earlier=lambda target: earlier_folders(target, claim),
        leaves_partial=True,
        board=StoreBoard(connect(), claim, lease.seconds) if connect else None,
        rules=RootRules(settings),
    )

    def look() -> None:
        if claim.devices:
            seen = seen_pretended() if settings.pretend_gpus else seen_gpus()
            os.write(telling, encode(Sees(devices=seen)))
            _refuse_others(claim.devices, seen)

    with os.fdopen(telling, "wb", closefd=False) as out:
        out.write(encode(_end(claim, context, look)))


def _end(claim: Claim, context: JobContext, look: Callable[[], None]) -> End:
    try:
        look()
        match run(claim.job.request.spec, context):
            case Answer(result=result):
                return Answered(result=result)
            case Prepared(staged=staged, result=result):
                return Staged(folder=staged.path, target=staged.target, replaces=staged.replaces, result=result)
    except FerryError as error:
        return Raised(error=error.info)
    except OSError as error:
        return Raised(error=error_from_os(error).info)
    except MemoryError:
        return Raised(error=_out_of_memory())
    except BaseException as error:  # PyTorch's CheckpointException is no Exception.
        traceback.print_exc()
        return Raised(error=_bug(error))


def _refuse_others(leased: Sequence[str], seen: Sequence[str]) -> None:
    """TransientError where the job would use another GPU than those that it leased."""
    if set(seen) != set(leased):
        raise TransientError(
            "wrong_devices",
            "the GPUs that CUDA shows to this job",
            found=", ".join(seen) or "none",
            expected=", ".join(leased),
            next_step="Check the driver and the container's devices on this host (`nvidia-smi -L` lists them).",
        )


def _out_of_memory() -> ErrorInfo:
    return TransientError(
        "out_of_memory",
        "the attempt",
        found="no memory left for it",
        expected="room for its buffers",
        next_step="It is tried again; if it repeats, run fewer jobs or copy processes on this machine.",
    ).info


def _bug(error: BaseException) -> ErrorInfo:
    return InternalError(
        "internal",
        "this job",
        found=f"{type(error).__name__}: {error}",
        expected="no unforeseen error",
        next_step="Report this with the traceback from the worker's log.",
    ).info
