"""On a rank: every key of a model's checkpoint with its global shape, from Megatron itself, on the meta device."""

from pathlib import Path
from typing import Literal

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

from worker.integration import for_this_host, load_model_config
from worker.verification.off_cuda import megatron_on

from .model import forget_attention_backend, set_parallelism

Implementation = Literal["local", "transformer_engine"]
Inventory = tuple[dict[str, tuple[int, ...]], set[str]]
"""Global shapes of the tensors by key, and the keys of the objects."""


def inventory(root: Path, transformer_impl: Implementation) -> Inventory:
    """What a model with the config at `root` saves and asks for; `transformer_impl` chooses the layer spec."""
    set_parallelism(1, 1)
    forget_attention_backend()
    config = for_this_host(load_model_config(root))
    _prepare(config.transformer, transformer_impl)
    with megatron_on("meta"), torch.device("meta"):
        model = config.get_builder_cls()(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
        state = model.sharded_state_dict()
    apply_factories(state)
    values = list(nested_values(state))
    tensors = [value for value in values if isinstance(value, ShardedTensor)]
    objects = {value.unique_key for value in values if isinstance(value, ShardedObject)}
    return {tensor.key: tuple(tensor.global_shape) for tensor in tensors}, objects


def _prepare(transformer: TransformerConfig, transformer_impl: Implementation) -> None:
    transformer.transformer_impl = transformer_impl
    transformer.perform_initialization = transformer.use_cpu_initialization = False
    transformer.moe_grouped_gemm = transformer_impl == "transformer_engine"
