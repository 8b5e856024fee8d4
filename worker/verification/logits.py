"""Both models run on the same tokens: how far their logits are from each other. A process of its own runs this."""
# torch and Megatron are typed in part:
# pyright: basic

import gc
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import distributed

from ..integration.load import for_this_host
from ..mapping.blocks import Task
from ..mapping.model_config import MegatronValues, build
from ..settings import compute_plainly, let_megatron_run_alone
from .kernels import stand_in_for_kernels
from .rounding import Rounding, round_hf, round_megatron
from .unmerged import Beside

_LENGTHS = (1.0, 0.4, 0.15, 0.03)
"""Of the prompts, as parts of the longest."""

# Upstream's two layer specs name some norms differently in checkpoints; trainers use Transformer Engine's names.
_TRANSFORMER_ENGINE_NAMES = (
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
    (".self_attention.q_layernorm.", ".self_attention.linear_q_up_proj.layer_norm_"),
    (".self_attention.kv_layernorm.", ".self_attention.linear_kv_up_proj.layer_norm_"),
)


@dataclass(frozen=True, slots=True)
class _Model:
    """`run`: token ids [1, length] to logits [1, length, vocabulary]. `round_to`: the weights, in place."""

    run: Callable[[torch.Tensor], torch.Tensor]
    round_to: Callable[[Rounding], None]


def serve(request: str) -> None:
    """A JSON line for each step and one for the figures. What libraries print goes where errors go."""
    compute_plainly()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with os.fdopen(os.dup(1), "w", buffering=1) as lines:
        os.dup2(2, 1)
        count = sum(2 + bool(side.get("rounding")) for side in json.loads(request)["sides"])  # loaded, run, run again
        steps = iter(range(1, count + 1))

        def stepped() -> None:
            lines.write(json.dumps({"step": next(steps), "of": count}) + "\n")

        lines.write(json.dumps({"figures": compare(request, stepped)}) + "\n")


def compare(request: str, stepped: Callable[[], None]) -> dict[str, Any]:
    """`{"sides": [side, side], "vocabulary": n, "longest": tokens, "device": "cpu"}`, a side being `{"hf": folder}` or
    `{"megatron": iteration folder, "values": MegatronValues}`. An HF model may have `adapters` beside it: see `Beside`.

    A side with a `rounding` is run again with its weights rounded so. The nearer of both is told as `rounded`, with the
    side's number, and with `moved`: by how much the rounding alone changes that side's logits.
    """
    asked = json.loads(request)
    vocabulary: int = asked["vocabulary"]
    prompts = prompts_for(vocabulary, asked["longest"])
    found: dict[int, list[torch.Tensor]] = {}
    # HF's models first: Megatron's side may find libraries stood in for, of which HF's must not know.
    for number, side in sorted(enumerate(asked["sides"]), key=lambda side: "megatron" in side[1]):
        found[number] = [one[..., :vocabulary] for one in _logits(side, prompts, asked["device"], stepped)]
    told: dict[str, Any] = figures(found[0][0], found[1][0])
    rounded = [
        {**figures(again, found[1 - number][0]), "side": number, "moved": (again - found[number][0]).abs().max().item()}
        for number in found
        for again in found[number][1:]
    ]
    told["rounded"] = min(rounded, key=lambda one: one["max_abs_difference"], default=None)
    return told


def figures(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Of two logits [places, vocabulary]. `top1_agreement` counts a tie within the difference as agreed."""
    difference = (one - other).abs().max().item()
    best = one.max(-1).values
    chosen = one.gather(-1, other.argmax(-1, keepdim=True)).squeeze(-1)
    agreed = best - chosen <= 2 * difference if difference < 1e-3 * _range(one) else best == chosen
    return {
        "max_abs_difference": difference,
        "range": _range(one),
        "cosine": min(_cosine(*pair) for pair in zip(one, other, strict=True)),
        "top1_agreement": agreed.float().mean().item(),
    }


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1).item()


def _range(logits: torch.Tensor) -> float:
    return (logits.max() - logits.min()).item()


def prompts_for(vocabulary: int, longest: int) -> list[torch.Tensor]:
    """[1, length] each: ids from all over the vocabulary, its last entry and repetitions included."""
    chance = torch.Generator().manual_seed(0)
    prompts = [torch.randint(vocabulary, (1, max(1, int(longest * part))), generator=chance) for part in _LENGTHS]
    prompts[0][0, 0] = vocabulary - 1
    length = prompts[1].shape[1]
    prompts[1] = prompts[1][:, : -(-length // 3)].repeat(1, 3)[:, :length]
    return prompts


def _logits(
    side: dict[str, Any], prompts: list[torch.Tensor], device: str, stepped: Callable[[], None]
) -> list[torch.Tensor]:
    """Of all places of all prompts, in fp32 on the CPU: [places, vocabulary]; and once more of rounded weights.

    The model is gone afterwards: the other one may need the room.
    """
    with torch.no_grad(), ExitStack() as while_it_runs:
        hf = side.get("hf")
        model = (
            _hf_model(Path(hf), side.get("adapters", ()), device)
            if hf
            else _megatron_model(side, device, while_it_runs)
        )
        stepped()
        logits = [_run(model, prompts, device)]
        stepped()
        if side.get("rounding"):
            model.round_to(Rounding(**side["rounding"]))
            logits.append(_run(model, prompts, device))
            stepped()
    del model
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
    return logits


def _run(model: _Model, prompts: list[torch.Tensor], device: str) -> torch.Tensor:
    return torch.cat([model.run(tokens.to(device)).float().cpu()[0] for tokens in prompts])


def _hf_model(folder: Path, adapters: Sequence[dict[str, Any]], device: str) -> _Model:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        **_dequantized(folder, transformers),
    )
    model = model.float().eval().to(device)  # Dequantized weights come in the config's dtype.
    beside = Beside(model, adapters, device)

    def round_to(rounding: Rounding) -> None:
        beside.fold_in()
        round_hf(model, rounding)

    return _Model(lambda tokens: model(tokens).logits, round_to)


def _dequantized(folder: Path, transformers: Any) -> dict[str, Any]:
    method = (json.loads((folder / "config.json").read_text()).get("quantization_config") or {}).get("quant_method")
    ways: dict[str, Callable[[], Any]] = {
        "fp8": lambda: transformers.FineGrainedFP8Config(dequantize=True),
        "mxfp4": lambda: transformers.Mxfp4Config(dequantize=True),
    }
    return {"quantization_config": ways[method]()} if method in ways else {}


def _megatron_model(side: dict[str, Any], device: str, while_it_runs: ExitStack) -> _Model:
    if device == "cpu" or find_spec("transformer_engine") is None:
        stand_in_for_kernels()
    from .off_cuda import megatron_on

    _join_alone(device)
    if device == "cpu":
        while_it_runs.enter_context(megatron_on("cpu"))
    model = _built(MegatronValues(**side["values"])).to(device)
    _load(model, Path(side["megatron"]))
    tasks = TypeAdapter(tuple[Task, ...]).validate_python(side.get("tasks", ()))
    return _Model(
        lambda tokens: model(tokens, torch.arange(tokens.shape[1], device=device)[None], None),
        lambda rounding: round_megatron(model, rounding, tasks),
    )


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

    config: Any = for_this_host(build(values), fused=False)
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

    from ..integration.checkpoint_names import content_of

    checkpointing: Any = dist_checkpointing
    keys = FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {"model": model.sharded_state_dict(metadata=content_of(folder, keys))}
    if model.config.transformer_impl == "local":
        every: Any = nested_values
        for value in every(state):
            others = (value.key.replace(local, other) for local, other in _TRANSFORMER_ENGINE_NAMES)
            value.key = next((name for name in (value.key, *others) if name in keys), value.key)
    model.load_state_dict(checkpointing.load(state, str(folder))["model"], strict=True)
