"""How a model is wrapped for data parallelism: Megatron's DDP, or its FSDP."""

from collections.abc import Mapping
from dataclasses import fields

from megatron.core.distributed import DistributedDataParallelConfig

_FSDP = {
    "use_megatron_fsdp": True,
    "use_distributed_optimizer": True,
    "check_for_nan_in_grad": True,
    "data_parallel_sharding_strategy": "optim_grads_params",
    "overlap_grad_reduce": True,
}
"""What Megatron's FSDP implies."""


def create_ddp_config(
    *,
    wrap_with_ddp: bool = True,
    use_distributed_optimizer: bool = False,
    use_megatron_fsdp: bool = False,
    overrides: Mapping[str, object] | None = None,
    finalize: bool = True,
) -> DistributedDataParallelConfig | None:
    """Upstream's DDP config; None where nothing is wrapped.

    FSDP implies a distributed optimizer, the check for NaN, sharding of parameters, gradients and optimizer, and
    overlapped reduction; `overrides` win. With `finalize` a config that has a `finalize` of its own runs it.
    AttributeError on an unknown name. After Megatron-Bridge's helper of this name (PR 3813).
    """
    if not wrap_with_ddp:
        return None
    values: dict[str, object] = {"use_distributed_optimizer": use_distributed_optimizer}
    if use_megatron_fsdp:
        values |= _FSDP
    values |= overrides or {}
    known = {field.name for field in fields(DistributedDataParallelConfig)}
    for name in values:
        if name not in known:
            raise AttributeError(
                f"override {name!r}: found in no field of DistributedDataParallelConfig, expected one of "
                f"{', '.join(sorted(known))}."
            )
    config = DistributedDataParallelConfig(**values)  # pyright: ignore[reportArgumentType]  # values of many types
    finish = getattr(config, "finalize", None)
    if finalize and finish is not None:
        finish()
    return config
