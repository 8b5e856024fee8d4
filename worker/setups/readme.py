"""The directory's README: what is here, how to start, what to set first."""

from .profile import Profile
from .trainer_run import TrainerRun


def readme(profile: Profile, run: TrainerRun) -> bytes:
    """Three lines under a title."""
    lines = "\n".join(f"{number}. {line}" for number, line in enumerate(profile.start(run), 1))
    return f"# {run.model.family.name} for {profile.trainer}\n\n{lines}\n".encode()
