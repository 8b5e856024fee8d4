"""Stand-in for random states and recomputation."""

from contextlib import AbstractContextManager, nullcontext


class CudaRNGStatesTracker:
    """Keeps named random states; on a CPU there are none."""

    def reset(self) -> None:
        """Forget all."""

    def set_states(self, states: object) -> None:
        """Replace all."""

    def add(self, name: str, seed: int) -> None:
        """Name one."""


def activation_recompute_forward(*unused: object, **options: object) -> AbstractContextManager[None]:
    """Nothing is recomputed."""
    return nullcontext()
