"""On a rank: a model built from an import's `model_config.json`, its weights loaded by Megatron, its logits."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemReader

from worker.integration import for_this_host, load_model_config
from worker.integration.checkpoint_names import use_saved_names
from worker.verification.off_cuda import megatron_on


def logits(
    root: Path, tokens: list[list[int]], tp_size: int = 1, pp_size: int = 1, ep_size: int = 1
) -> np.ndarray | None:
    """[batch, length, vocabulary, padding included] of the checkpoint at `root`; None but on the last stage."""
    with megatron_on("cpu"), torch.no_grad():
        model = build(root, tp_size, pp_size, torch.float32, ep_size)
        load(model, root)
        answer = forward(model, torch.tensor(tokens))
    return None if answer is None else answer.numpy()


def set_parallelism(tp_size: int, pp_size: int, ep_size: int = 1, etp_size: int | None = None) -> None:
    """Make Megatron's groups over the ranks that there are; experts are cut as other layers are, unless said."""
    etp_size = tp_size if etp_size is None else etp_size
    sizes = (
        parallel_state.get_tensor_model_parallel_world_size,
        parallel_state.get_pipeline_model_parallel_world_size,
        parallel_state.get_expert_model_parallel_world_size,
        parallel_state.get_expert_tensor_parallel_world_size,
    )
    if parallel_state.model_parallel_is_initialized():
        if tuple(size() for size in sizes) == (tp_size, pp_size, ep_size, etp_size):
            return
        leave_groups()
    parallel_state.initialize_model_parallel(
        tp_size, pp_size, expert_model_parallel_size=ep_size, expert_tensor_parallel_size=etp_size
    )


def leave_groups() -> None:
    """Megatron only forgets its groups, and each of gloo's keeps a thread that polls a hundred times a second."""
    parallel_state.destroy_model_parallel()
    everyone = distributed.group.WORLD
    for group in [group for group in distributed.distributed_c10d._world.pg_map if group is not everyone]:
        distributed.destroy_process_group(group)
    gc.collect()  # optimizers and models in cycles hold groups too


def build(
    root: Path,
    tp_size: int,
    pp_size: int,
    dtype: torch.dtype | None = None,
    ep_size: int = 1,
    last_stage_layers: int | None = None,
) -> Any:
    """This rank's part of the model, with random weights, in `dtype` or the config's own."""
    forget_attention_backend()
    config = for_this_host(load_model_config(root))
    config.parallel_output = False
    transformer = config.transformer
    # Upstream adds an expert's output bias once on every rank of an expert's tensor parallelism: none is used then.
    whole_experts = transformer.num_moe_experts is not None and transformer.add_bias_linear
    transformer.expert_tensor_parallel_size = 1 if whole_experts else tp_size
    set_parallelism(tp_size, pp_size, ep_size, transformer.expert_tensor_parallel_size)
    transformer.tensor_model_parallel_size = tp_size
    transformer.pipeline_model_parallel_size = pp_size
    transformer.num_layers_in_last_pipeline_stage = last_stage_layers
    transformer.expert_model_parallel_size = ep_size
    transformer.params_dtype = transformer.pipeline_dtype = dtype or transformer.params_dtype
    transformer.bf16 = transformer.params_dtype is torch.bfloat16
    transformer.fp16 = transformer.params_dtype is torch.float16
    config.finalize()
    model = config.get_builder_cls()(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    # Training wraps the model in Float16Module, which does the same: the local norms are made in fp32.
    return model.to(transformer.params_dtype).eval()


def forget_attention_backend() -> None:
    """Each model names its attention backend in these, and refuses to be built where another one did."""
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        os.environ.pop(name, None)


def checkpoint_folder(root: Path) -> Path:
    """The folder that the tracker file names, as Megatron's loader finds it."""
    tracker = (root / "latest_checkpointed_iteration.txt").read_text().strip()
    return root / (tracker if tracker == "release" else f"iter_{int(tracker):07d}")


def load(model: GPTModel, root: Path) -> None:
    """Megatron's own load, with its default strictness; every parameter and buffer must be there."""
    folder = checkpoint_folder(root)
    metadata = dist_checkpointing.load_content_metadata(str(folder))
    state = {"model": model.sharded_state_dict(metadata=metadata)}
    if model.config.transformer_impl == "local":
        use_saved_names(nested_values(state), checkpoint_keys(folder))
    loaded = dist_checkpointing.load(state, str(folder))
    assert isinstance(loaded, dict)  # a tuple only where a strictness is asked for that reports keys
    model.load_state_dict(loaded["model"], strict=True)


def checkpoint_keys(folder: Path) -> frozenset[str]:
    """Every key of a checkpoint."""
    return frozenset(FileSystemReader(folder).read_metadata().state_dict_metadata)


def forward(model: GPTModel, tokens: torch.Tensor) -> torch.Tensor | None:
    """Logits on the last pipeline stage; the others hand their hidden states on."""
    batch, length = tokens.shape
    if not model.pre_process:
        hidden = torch.empty(length, batch, model.config.hidden_size)
        distributed.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    answer = model(tokens, torch.arange(length).expand_as(tokens), None)
    if model.post_process:
        return answer
    distributed.send(answer.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    return None


def mtp_states(root: Path, tokens: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """What the first layer of multi-token prediction takes and gives: hidden states [batch, length, hidden], normed."""
    seen: dict[str, torch.Tensor] = {}

    def taken(module: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen["taken"] = options["hidden_states"]

    def given(module: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen["given"] = output[0] if isinstance(output, tuple) else output

    with megatron_on("cpu"), torch.no_grad():
        model = build(root, 1, 1, torch.float32)
        load(model, root)
        layer = model.mtp.layers[0]
        layer.register_forward_pre_hook(taken, with_kwargs=True)
        layer.register_forward_hook(given)
        forward(model, torch.tensor(tokens))
    return seen["taken"].transpose(0, 1).numpy(), seen["given"].transpose(0, 1).numpy()
