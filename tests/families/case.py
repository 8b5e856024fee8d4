"""Cases: tiny random HF checkpoints in awkward shapes, written by transformers itself; one list a family."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.mapping.family import Family
from worker.mapping.registry import FAMILIES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VOCABULARY = 257

Changes = Mapping[str, object]
Shapes = dict[str, tuple[int, ...] | str]
"""Of random tensors; a name stands for a copy of that tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of checkpoint. `control` are config changes that the logits must show."""

    name: str
    model_type: str
    config: Changes
    control: Changes = field(default_factory=dict[str, object])
    length: int = 96
    max_shard_size: str = "1GB"
    zero_centered: bool = False
    """The norms add one to their weights."""
    without_local: str = ""
    """Why Megatron's local layers cannot express it, where they cannot."""
    add: Callable[[dict[str, Any]], Shapes] | None = None
    """Tensors that checkpoints carry and HF's class does not load, by name."""
    respell: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """config.json as another version of transformers wrote it."""

    def __str__(self) -> str:
        return self.name

    @property
    def experts(self) -> int:
        """How many experts a layer has; 0 in a dense model."""
        spellings = ("num_experts", "num_local_experts", "n_routed_experts")
        return next((number for name in spellings if isinstance(number := self.config.get(name), int)), 0)

    @property
    def tokens(self) -> list[list[int]]:
        """Two sequences that use the whole vocabulary, its last entry included."""
        return [[(17 * place * (row + 1) + 256 * row) % VOCABULARY for place in range(self.length)] for row in range(2)]


def cases_of(family: Family) -> tuple[Case, ...]:
    """The family's cases: `CASES` of the module of its name beside this one."""
    return importlib.import_module(f"tests.families.cases.{family.name}").CASES


CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in cases_of(family))
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two cases of one name"


def write(case: Case, folder: Path) -> None:
    """A checkpoint with random weights, the same for the same case."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(case.model_type, **case.config)
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    _randomize(model, case.zero_centered)
    model.save_pretrained(folder, max_shard_size=case.max_shard_size)
    written = folder / "config.json"
    if case.add:
        _add(folder, case.add(json.loads(written.read_text())))
    if case.respell:
        written.write_text(json.dumps(case.respell(json.loads(written.read_text())), indent=2))


def logits(folder: Path, tokens: list[list[int]], **changes: object) -> "torch.Tensor":
    """HF's own logits [batch, length, vocabulary] in fp32, under its config with `changes`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **changes)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits


def _randomize(model: "PreTrainedModel", zero_centered: bool) -> None:
    """Every floating value of the state dict, buffers included, is drawn anew; norms lie around their neutral value."""
    import torch

    generator = torch.Generator().manual_seed(0)
    neutral = 0.0 if zero_centered else 1.0
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.3 * torch.randn(tensor.shape, generator=generator)
                is_norm = "norm" in name and name.endswith("weight")
                tensor.copy_(neutral + noise if is_norm else noise)


def _add(folder: Path, shapes: Shapes) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    dtype = next(iter(tensors.values())).dtype
    generator = torch.Generator().manual_seed(1)
    for name, shape in shapes.items():
        if isinstance(shape, str):
            tensors[name] = tensors[shape].clone()
        else:
            tensors[name] = (0.3 * torch.randn(shape, generator=generator)).to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
