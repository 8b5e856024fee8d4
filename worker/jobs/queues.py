"""The queues that messages travel in: one a resource class."""

from collections.abc import Iterable

from .spec import Priority

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

AMQP_PRIORITY: dict[Priority, int] = {"high": 9, "normal": 5, "low": 1}


def queue_of(resource_class: str) -> str:
    """`ferry.cpu`, `ferry.gpu`, `ferry.gpu.2`, ..."""
    return f"ferry.{resource_class.replace(':', '.')}"


def queues_for(gpus: int) -> tuple[str, ...]:
    """What a slot takes jobs from: `gpus` is the number of its host's GPUs, 0 for a slot without one."""
    return tuple(queue_of(name) for name in classes_for(gpus))


def classes_for(gpus: int) -> Iterable[str]:
    """The resource classes that a slot can run: one pinned to a GPU leases its neighbours for a larger job."""
    if gpus == 0:
        return ("cpu",)
    return ("gpu", *(f"gpu:{number}" for number in range(2, gpus + 1)))
