"""One rank of many: builds its part of a model and loads a checkpoint into it. A process of its own runs this."""
# torch and Megatron are typed in part:
# pyright: basic

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed

from ..integration.load import for_this_host, load_model_config
from ..settings import let_megatron_run_alone
from .kernels import stand_in_for_kernels

_SECONDS = 3600


def serve(request: str) -> None:
    """`{"rank", "size", "meeting", "folder", "config", "parallelism"}`; ends without error where all is well."""
    asked = json.loads(request)
    stand_in_for_kernels()
    torch.set_num_threads(1)
    let_megatron_run_alone()
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{asked['meeting']}/store",
        rank=asked["rank"],
        world_size=asked["size"],
        timeout=timedelta(seconds=_SECONDS),
    )
    _join_groups(asked["parallelism"])
    from ..integration.model_checkpoint import load_checkpoint
    from .off_cuda import megatron_on

    with megatron_on("cpu"), mock.patch.object(torch.cuda, "current_stream", return_value=None):
        chunks = _built(asked["config"])
        load_checkpoint(chunks, Path(asked["folder"]))
    distributed.barrier()


def _join_groups(sizes: dict[str, Any]) -> None:
    from megatron.core import parallel_state

    state: Any = parallel_state
    state.initialize_model_parallel(
        tensor_model_parallel_size=sizes["tp_size"],
        pipeline_model_parallel_size=sizes["pp_size"],
        virtual_pipeline_model_parallel_size=sizes["vpp_size"],
        context_parallel_size=sizes["cp_size"],
        expert_model_parallel_size=sizes["ep_size"],
        expert_tensor_parallel_size=sizes["etp_size"],
    )


def _built(written: dict[str, object]) -> list[Any]:
    """This rank's chunks, uninitialised: they are about to be loaded."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    config: Any = for_this_host(load_model_config(written))
    config.transformer.perform_initialization = False
    config.finalize()
    groups: Any = ProcessGroupCollection
    builder = config.get_builder_cls()(config)
    return builder.build_distributed_models(groups.use_mpu_process_groups(), wrap_with_ddp=False)
