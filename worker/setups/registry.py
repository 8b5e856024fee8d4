"""All trainers' profiles."""

from ..jobs.setup_spec import ProfileName
from .profile import Profile
from .profiles.megatron_bridge import MEGATRON_BRIDGE
from .profiles.megatron_lm import MEGATRON_LM
from .profiles.nemo_rl import NEMO_RL
from .profiles.slime import SLIME
from .profiles.verl import VERL

PROFILES: tuple[Profile, ...] = (MEGATRON_LM, MEGATRON_BRIDGE, VERL, SLIME, NEMO_RL)


def profile_of(name: ProfileName) -> Profile:
    """The one of this name."""
    return next(profile for profile in PROFILES if profile.name == name)
