"""Both models run on the same tokens: how far their logits are from each other. A process of its own runs this."""
# torch and Megatron are typed in part:
# pyright: basic

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..integration.load import for_this_host
from ..mapping.model_config import MegatronValues, build
from ..settings import let_megatron_run_alone
from .kernels import stand_in_for_kernels

_LENGTH, _SEQUENCES = 64, 2
_STEPS = 4
"""Two models, each loaded and run."""

# Upstream's two layer specs name some norms differently in checkpoints; trainers use Transformer Engine's names.
_TRANSFORMER_ENGINE_NAMES = (
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
    (".self_attention.q_layernorm.", ".self_attention.linear_q_up_proj.layer_norm_"),
    (".self_attention.kv_layernorm.", ".self_attention.linear_kv_up_proj.layer_norm_"),
)


def serve(request: str) -> None:
    """A JSON line for each step and one for the figures. What libraries print goes where errors go."""
    with os.fdopen(os.dup(1), "w", buffering=1) as lines:
        os.dup2(2, 1)
        steps = iter(range(1, _STEPS + 1))

        def stepped() -> None:
            lines.write(json.dumps({"step": next(steps), "of": _STEPS}) + "\n")

        lines.write(json.dumps({"figures": compare(request, stepped)}) + "\n")


def compare(request: str, stepped: Callable[[], None]) -> dict[str, float]:
    """`{"sides": [side, side], "vocabulary": n, "device": "cpu"}`, a side being `{"hf": folder}` or
    `{"megatron": iteration folder, "values": MegatronValues}`."""
    asked = json.loads(request)
    vocabulary: int = asked["vocabulary"]
    tokens = _tokens(vocabulary)
    found: dict[int, torch.Tensor] = {}
    # HF's models first: Megatron's side may find libraries stood in for, of which HF's must not know.
    for number, side in sorted(enumerate(asked["sides"]), key=lambda side: "megatron" in side[1]):
        found[number] = _logits(side, tokens, asked["device"], stepped)[..., :vocabulary].float().cpu()
    return figures(found[0], found[1])


def figures(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Of two logits [batch, length, vocabulary]. `top1_agreement` counts a tie within the difference as agreed."""
    difference = (one - other).abs().max().item()
    best = one.max(-1).values
    chosen = one.gather(-1, other.argmax(-1, keepdim=True)).squeeze(-1)
    agreed = best - chosen <= 2 * difference if difference < 1e-3 * _range(one) else best == chosen
    return {
        "max_abs_difference": difference,
        "range": _range(one),
        "cosine": torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).min().item(),
        "top1_agreement": agreed.float().mean().item(),
    }


def _range(logits: torch.Tensor) -> float:
    return (logits.max() - logits.min()).item()


def _tokens(vocabulary: int) -> torch.Tensor:
    """Ids from all over the vocabulary, its last entry included."""
    step = max(1, vocabulary // 15)
    rows = [
        [(step * place * (row + 1) + (vocabulary - 1) * (place == row)) % vocabulary for place in range(_LENGTH)]
        for row in range(_SEQUENCES)
    ]
    return torch.tensor(rows)


def _logits(side: dict[str, Any], tokens: torch.Tensor, device: str, stepped: Callable[[], None]) -> torch.Tensor:
    with torch.no_grad():
        if "hf" in side:
            logits = _hf_logits(Path(side["hf"]), tokens, device, stepped)
        else:
            values = MegatronValues(**side["values"])
            logits = _megatron_logits(Path(side["megatron"]), values, tokens, device, stepped)
    stepped()
    return logits


def _hf_logits(folder: Path, tokens: torch.Tensor, device: str, stepped: Callable[[], None]) -> torch.Tensor:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **_dequantized(folder, transformers)
    )
    model = model.eval().to(device)
    stepped()
    return model(tokens.to(device)).logits


def _dequantized(folder: Path, transformers: Any) -> dict[str, Any]:
    method = (json.loads((folder / "config.json").read_text()).get("quantization_config") or {}).get("quant_method")
    ways: dict[str, Callable[[], Any]] = {
        "fp8": lambda: transformers.FineGrainedFP8Config(dequantize=True),
        "mxfp4": lambda: transformers.Mxfp4Config(dequantize=True),
    }
    return {"quantization_config": ways[method]()} if method in ways else {}


def _megatron_logits(
    folder: Path, values: MegatronValues, tokens: torch.Tensor, device: str, stepped: Callable[[], None]
) -> torch.Tensor:
    if device == "cpu":
        stand_in_for_kernels()
    from .off_cuda import megatron_on

    _join_alone(device)
    with megatron_on("cpu") if device == "cpu" else nullcontext():
        model = _built(values).to(device)
        _load(model, folder)
        stepped()
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return model(tokens.to(device), positions.to(device), None)


def _join_alone(device: str) -> None:
    """Megatron knows no model without groups."""
    from megatron.core import parallel_state, tensor_parallel

    let_megatron_run_alone()
    if distributed.is_initialized():  # The other side is Megatron's too.
        return
    meeting = Path(tempfile.mkdtemp()) / "store"
    backend = "gloo" if device == "cpu" else "nccl"
    distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1)
    state: Any = parallel_state
    state.initialize_model_parallel()
    if device != "cpu":
        parallel: Any = tensor_parallel
        parallel.model_parallel_cuda_manual_seed(0)


def _built(values: MegatronValues) -> Any:
    from megatron.core.process_groups_config import ProcessGroupCollection

    config: Any = for_this_host(build(values))
    config.parallel_output = False
    transformer = config.transformer
    transformer.params_dtype = transformer.pipeline_dtype = torch.float32
    transformer.bf16 = transformer.fp16 = False
    config.finalize()
    groups: Any = ProcessGroupCollection
    return config.get_builder_cls()(config).build_model(groups.use_mpu_process_groups()).float().eval()


def _load(model: Any, folder: Path) -> None:
    """Megatron's own load; every parameter and buffer must be there."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    checkpointing: Any = dist_checkpointing
    metadata = checkpointing.load_content_metadata(str(folder))
    state: dict[str, Any] = {"model": model.sharded_state_dict(metadata=metadata)}
    if model.config.transformer_impl == "local":
        keys = FileSystemReader(folder).read_metadata().state_dict_metadata
        every: Any = nested_values
        for value in every(state):
            others = (value.key.replace(local, other) for local, other in _TRANSFORMER_ENGINE_NAMES)
            value.key = next((name for name in (value.key, *others) if name in keys), value.key)
    model.load_state_dict(checkpointing.load(state, str(folder))["model"], strict=True)
