"""Libraries of GPU kernels that Megatron-Core's layers need, stood in for where there is no GPU."""

import sys
from pathlib import Path

_STAND_INS = Path(__file__).parent / "stand_ins"


def stand_in_for_kernels() -> None:
    """Let this process find Transformer Engine, mamba_ssm and fla as their mathematics alone, in fp32 on any device.

    Only before Megatron is imported, which looks for them once.
    """
    sys.path.insert(0, str(_STAND_INS))
