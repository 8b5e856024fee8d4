"""Adapters beside HF's model, unmerged: each adds to what its layer says, as PEFT's forward pass has it."""
# torch is typed in part:
# pyright: basic

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_FILE, _PREFIX = "adapter_model.safetensors", "base_model.model."


@dataclass(frozen=True, slots=True)
class _Factors:
    scale: float
    a: torch.Tensor
    b: torch.Tensor
    magnitude: torch.Tensor | None

    def delta(self) -> torch.Tensor:
        return self.scale * (self.b @ self.a)

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """DoRA's factor of each output."""
        assert self.magnitude is not None
        return self.magnitude / (weight + self.delta()).norm(dim=1)


class Beside:
    """Adapters on a live model. `adapters`: `{"folder", "scales": by module, the adapter's weight in them}` each."""

    def __init__(self, model: Any, adapters: Sequence[Mapping[str, Any]], device: str) -> None:
        self._layers: dict[str, tuple[Any, list[_Factors]]] = {}
        for adapter in adapters:
            tensors = load_file(Path(adapter["folder"]) / _FILE, device=device)
            for module, scale in adapter["scales"].items():
                _, found = self._layers.setdefault(module, (model.get_submodule(module), []))
                a, b = (tensors[f"{_PREFIX}{module}.lora_{part}.weight"].float() for part in ("A", "B"))
                magnitude = tensors.get(f"{_PREFIX}{module}.lora_magnitude_vector")
                found.append(_Factors(scale, a, b, None if magnitude is None else magnitude.float()))
        self._hooks = [layer.register_forward_hook(_adding(found)) for layer, found in self._layers.values()]

    def fold_in(self) -> None:
        """Merge them in fp32, for whoever rounds the sums."""
        for hook in self._hooks:
            hook.remove()
        with torch.no_grad():
            for layer, found in self._layers.values():
                merged = layer.weight.clone()
                for factors in found:
                    merged += factors.delta()
                    if factors.magnitude is not None:
                        merged *= factors.rows(layer.weight)[:, None]
                layer.weight = torch.nn.Parameter(merged)  # An output layer may have been tied to the embedding.


def _adding(found: list[_Factors]) -> Any:
    def add(layer: Any, given: tuple[torch.Tensor], said: torch.Tensor) -> torch.Tensor:
        bias = 0 if layer.bias is None else layer.bias
        for factors in found:
            said = said + factors.scale * (given[0] @ factors.a.T) @ factors.b.T
            if factors.magnitude is not None:
                said = (said - bias) * factors.rows(layer.weight) + bias
        return said

    return add
