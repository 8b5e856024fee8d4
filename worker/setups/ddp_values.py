"""`ddp_config.json`: the fields of Megatron's `DistributedDataParallelConfig`, megatron-core 0.19."""

import json

from ..jobs.errors import BadInputError
from ..jobs.setup_spec import DdpSettings

FIELDS: dict[str, object] = {
    "grad_reduce_in_fp32": False,
    "overlap_grad_reduce": False,
    "overlap_param_gather": False,
    "align_param_gather": False,
    "use_distributed_optimizer": False,
    "num_distributed_optimizer_instances": 1,
    "check_for_nan_in_grad": False,
    "check_for_large_grads": False,
    "bucket_size": None,
    "num_buckets": None,
    "pad_buckets_for_high_nccl_busbw": False,
    "reduce_scatter_with_fp32_accumulation": False,
    "param_name_patterns_for_fp32_local_accumulation": (),
    "average_in_collective": False,
    "fp8_param_gather": False,
    "fp4_param_gather": False,
    "reuse_grad_buf_for_mxfp8_param_ag": False,
    "use_megatron_fsdp": False,
    "use_custom_fsdp": False,
    "data_parallel_sharding_strategy": "no_shard",
    "gradient_reduce_div_fusion": True,
    "suggested_communication_unit_size": None,
    "keep_fp8_transpose_cache": False,
    "nccl_ub": False,
    "fsdp_double_buffer": False,
    "fsdp_db_use_persist_buf_on_alloc_fail": False,
    "fsdp_all_gather_in_start_param_sync": True,
    "outer_dp_sharding_strategy": "no_shard",
    "disable_symmetric_registration": False,
    "fsdp_manual_registration": False,
    "delay_wgrad_compute": False,
    "megatron_fsdp_use_decoupled_grad": False,
    "megatron_fsdp_cuda_graph_mode": False,
    "megatron_fsdp_enable_fine_grained_param_gather": False,
    "megatron_fsdp_max_pool_double_buffer": False,
}
"""Upstream's, with its defaults; dtypes, which have no JSON form, keep theirs."""

_OURS: dict[str, object] = {"grad_reduce_in_fp32": True, "check_for_nan_in_grad": True}
"""What Megatron-LM's own program sets for training in bf16."""
_FSDP: dict[str, object] = {
    "use_megatron_fsdp": True,
    "use_distributed_optimizer": True,
    "data_parallel_sharding_strategy": "optim_grads_params",
    "overlap_grad_reduce": True,
}
"""What Megatron's FSDP implies."""


def ddp_values(settings: DdpSettings) -> dict[str, object]:
    """Every field. BadInputError where an override names none, or has another type than its field."""
    values = {**FIELDS, **_OURS, "use_distributed_optimizer": settings.use_distributed_optimizer}
    if settings.use_megatron_fsdp:
        values |= _FSDP
    for name, value in settings.overrides.items():
        values[name] = _checked(name, value)
    return values


def ddp_json(settings: DdpSettings) -> bytes:
    """`ddp_config.json`."""
    return json.dumps(ddp_values(settings), indent=2).encode() + b"\n"


def _checked(name: str, value: object) -> object:
    if name not in FIELDS:
        raise _wrong(name, "no such field", f"one of {', '.join(sorted(FIELDS))}")
    default = FIELDS[name]
    if default is None and (value is None or (isinstance(value, int) and not isinstance(value, bool))):
        return value
    if isinstance(default, type(value)) or (isinstance(default, tuple) and _is_list(value)):
        return value
    kind = "an integer or null" if default is None else f"a value like {json.dumps(default)}"
    raise _wrong(name, repr(value), kind)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _wrong(name: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "bad_request",
        f"spec field ddp.overrides.{name}",
        found=found,
        expected=expected,
        next_step="Mend it, or leave it out.",
    )
