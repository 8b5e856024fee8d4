"""On a rank: what its memory holds while it trains, and what autograd keeps between forward and backward."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

SCORES = "scores"
_COUNTED, _MEASURED = 1, 2
"""Steps, from 0: in the first the optimizer makes its states, in the second what is kept is counted, then peaks."""


@dataclass(slots=True)
class Watch:
    """Told of every forward pass of a step; each reading is taken before the first one of its step."""

    length: int
    steps: int = 0
    micro_batches: int = 0
    readings: dict[str, int] = field(default_factory=dict[str, int])
    kept: dict[str, int] = field(default_factory=lambda: defaultdict[str, int](int))
    seen: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    _storages: dict[int, Any] = field(default_factory=dict[int, Any])
    _at_work: list[str] = field(default_factory=list[str])

    def micro_batch(self, model: Any, tokens: torch.Tensor, count: int) -> None:
        """One of `count` of a training step goes into the model."""
        if self.micro_batches % count == 0:
            self._step(model)
        if self.micro_batches < count:
            self.seen.append(tokens.cpu())
        self.micro_batches += 1

    def _step(self, model: Any) -> None:
        match self.steps:
            case 0:
                self.readings |= _of_model(model)
                self.readings["loaded"] = _allocated()
            case 1:
                self.readings["states"] = _allocated()
                self.readings["buffers"] = _global_buffers()
            case 2:
                self._storages.clear()
                _reset_peak()
            case 3:
                self.readings["peak"] = _peak()
            case _:
                pass
        self.steps += 1

    def finish(self) -> None:
        """Training is over."""
        if "peak" not in self.readings and self.steps > _MEASURED:
            self.readings["peak"] = _peak()

    @contextmanager
    def forward(self, model: Any) -> Iterator[None]:
        """Around a forward pass: of one, what is kept is counted, each storage once."""
        if self.steps != _COUNTED + 1 or self.kept:
            yield
            return
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        handles = list(self._named(model))
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: self._keep(tensor, weights), lambda kept: kept):
            yield
        for handle in handles:
            handle.remove()

    def write(self, folder: Path) -> None:
        """`rank-N.json` and `seen-N.pt`."""
        rank = torch.distributed.get_rank()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        answer = {"rank": rank, "stage": stage, **self.readings, "kept": dict(self.kept)}
        (folder / f"rank-{rank}.json").write_text(json.dumps(answer))
        torch.save(self.seen, folder / f"seen-{rank}.pt")

    def _named(self, model: Any) -> Iterator[Any]:
        """Hooks by which the innermost module at work is known."""
        for path, module in model.named_modules():
            name = re.sub(r"\.\d+(?=\.|$)", ".*", path).removeprefix("module.module.")
            yield module.register_forward_pre_hook(lambda *_, name=name: self._at_work.append(name))
            yield module.register_forward_hook(lambda *_: self._left())

    def _left(self) -> None:
        self._at_work.pop()

    def _keep(self, tensor: torch.Tensor, weights: set[int]) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in self._storages:
            self._storages[storage.data_ptr()] = storage  # held until the end of the step, so that none is used anew
            self.kept[self._kind(tensor)] += storage.nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it

    def _kind(self, tensor: torch.Tensor) -> str:
        """Scores, or the module that keeps it."""
        if not self._at_work:
            return "outside"
        scores = self._at_work[-1].endswith("core_attention") or ".core_attention." in self._at_work[-1]
        return SCORES if scores and tensor.shape[-2:] == (self.length, self.length) else self._at_work[-1]


def _of_model(model: Any) -> dict[str, int]:
    buffers = [*model.buffers, *model.expert_parallel_buffers]
    weights = sum(parameter.nbytes for parameter in model.parameters())
    gradients = sum(buffer.grad_data.nbytes for buffer in buffers)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": weights,
        "gradients": gradients,
    }


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def _global_buffers() -> int:
    """Memory that local layers keep for scores and gathered inputs; Transformer Engine has its own."""
    return sum(buffer.nbytes for buffer in parallel_state.get_global_memory_buffer().buffer.values())
