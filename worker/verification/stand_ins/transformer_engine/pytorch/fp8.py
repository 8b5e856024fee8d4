"""Stand-in for fp8: always off."""

from contextlib import AbstractContextManager, nullcontext


class FP8GlobalStateManager:
    """Says whether fp8 is on."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


def fp8_autocast(*unused: object, **options: object) -> AbstractContextManager[None]:
    """Computes as it is."""
    return nullcontext()


def fp8_model_init(*unused: object, **options: object) -> AbstractContextManager[None]:
    """Creates parameters as they are."""
    return nullcontext()
