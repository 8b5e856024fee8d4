"""Whether a planned job has room on its disk."""

from typing import Any

from worker.jobs.errors import TransientError


def refuse_without_room(plan: dict[str, Any]) -> None:
    """TransientError where the plan's job could not be written now."""
    disk = plan["disk"]
    if not disk["fits"]:
        kept = f", {disk['reserved_bytes']:,} of them kept for running jobs" if disk["reserved_bytes"] else ""
        raise TransientError(
            "disk_full",
            f"file system {disk['filesystem']}",
            found=f"{disk['free_bytes']:,} bytes free{kept}",
            expected=f"{disk['needed_bytes']:,} bytes",
            next_step="Free space, or choose a target elsewhere; on a server the job would wait for room.",
        )
