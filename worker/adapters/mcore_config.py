"""How a Megatron adapter was trained: our `peft_config.json`, or `peft` of a run config or of our own trainers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..checkpoints.hf_folder import read_json_object
from ..checkpoints.yaml_file import read_yaml_object
from ..jobs.errors import BadInputError
from ..jobs.misreading import Misreading
from ..mapping.run_config import RUN_CONFIG
from .linears import Linear

PEFT_CONFIG = "peft_config.json"
_SECTION, _TARGET = "peft", "_target_"

_TYPES = {"LoRA": "lora", "VLMLoRA": "lora", "CanonicalLoRA": "canonical_lora", "DoRA": "dora"}
"""Megatron-Bridge's classes."""

_WITHOUT_EFFECT = frozenset(
    {
        "_call_",
        "a2a_experimental",
        "dropout_position",
        "dtype",
        "freeze_language_model",
        "freeze_vision_model",
        "freeze_vision_projection",
        "lora_A_init_method",
        "lora_B_init_method",
        "lora_dtype",
        "sequence_parallel_input_regather",
        "share_expert_adapters",  # the tensors tell
    }
)
"""Fields that change nothing in what a trained adapter adds."""

_PARTS = {"linear_q": "linear_qkv", "linear_k": "linear_qkv", "linear_v": "linear_qkv"} | {
    "linear_fc1_gate": "linear_fc1",
    "linear_fc1_up": "linear_fc1",
}
"""Canonical LoRA's targets, and the fused layers that they are part of."""

Kind = Literal["lora", "canonical_lora", "dora"]


class McoreAdapterConfig(BaseModel):
    """What decides what the adapter adds, under Megatron-Bridge's names."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    type: Kind = "lora"
    dim: int = Field(ge=1)
    alpha: float
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    exclude_modules: tuple[str, ...] | None = None
    normalize_moe_lora: bool = False
    """Experts have a smaller rank; their scale is alpha over that."""

    def targets(self, layer: Linear) -> bool:
        """Whether the config gives the layer, or (canonical) a part of it, factors."""
        if not self.target_modules:
            return False
        return any(_matches(_PARTS.get(_leaf(t), _leaf(t)), t, layer) for t in self.target_modules) and not any(
            _matches(_leaf(excluded), excluded, layer) for excluded in self.exclude_modules or ()
        )

    def targets_part(self, layer: Linear, component: str) -> bool:
        """Whether canonical LoRA gives this part of a fused layer factors."""
        own = f"linear_{component}" if len(component) == 1 else f"linear_fc1_{component}"
        return any(_leaf(t) == own and _matches(_PARTS[own], t, layer) for t in self.target_modules or ())

    def as_json(self) -> bytes:
        """`peft_config.json`."""
        return json.dumps(self.model_dump(exclude_defaults=True) | {"type": self.type}, indent=2).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """A config, and the file that it was found in."""

    config: McoreAdapterConfig
    path: Path


@dataclass(frozen=True, slots=True)
class SavedConfig:
    """Values, and the file that holds them."""

    values: Mapping[str, object]
    path: Path


def read_mcore_config(source: Path, folder: Path, saved: SavedConfig | None = None) -> ReadConfig:
    """Of the checkpoint `source` with its iteration folder. BadInputError where there is none, or it is unknown.

    `saved` is what a trainer with our adapters left in the checkpoint itself.
    """
    for path in dict.fromkeys((source / PEFT_CONFIG, folder / PEFT_CONFIG, folder.parent / PEFT_CONFIG)):
        if path.exists():
            return ReadConfig(_parse(read_json_object(path, "an adapter's config"), str(path)), path)
    path = folder / RUN_CONFIG
    section = read_yaml_object(path, "a run's config").get(_SECTION) if path.exists() else None
    if section is None and saved is not None:
        return ReadConfig(_parse(saved.values, f"{saved.path}: peft"), saved.path)
    if not isinstance(section, Mapping):
        raise BadInputError(
            "missing_file",
            f"config of adapter {source}",
            found=f"no {PEFT_CONFIG} beside it, and no `{_SECTION}:` in {RUN_CONFIG} inside",
            expected="one of them: they say alpha, which no tensor tells",
            next_step=f'Write it: {{"type": "lora", "dim": 16, "alpha": 32}} in {source / PEFT_CONFIG}.',
        )
    values = dict(cast("Mapping[str, object]", section))
    return ReadConfig(_parse(values | {"type": _type_of(values.pop(_TARGET, None), path)}, f"{path}: peft"), path)


def _type_of(target: object, path: Path) -> str:
    name = str(target).rpartition(".")[2]
    if name not in _TYPES:
        raise _unsupported(f"{path}: {_SECTION}.{_TARGET}", repr(target), " or ".join(_TYPES))
    return _TYPES[name]


def _parse(values: Mapping[str, object], origin: str) -> McoreAdapterConfig:
    wanted = {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT and name != _TARGET}
    if "rank" in wanted:  # an alias, as trainers write it
        wanted["dim"] = wanted.pop("rank")
    known = McoreAdapterConfig.model_fields.keys()
    silent = {name for name, value in wanted.items() if name not in known and value in (None, False, "", 0)}
    try:
        return McoreAdapterConfig.model_validate(
            {name: value for name, value in wanted.items() if name not in silent and value is not None}
        )
    except ValidationError as error:
        read = Misreading.first_of(error, McoreAdapterConfig)
        raise _unsupported(f"{origin}: {read.field}", read.found, read.expected) from error


def _leaf(target: str) -> str:
    return target.rpartition(".")[2]


def _matches(leaf: str, target: str, layer: Linear) -> bool:
    """Megatron-Bridge's ModuleMatcher: a module's own name, or a pattern with `*` of its full name."""
    if target == _leaf(target) and "*" not in target:
        return leaf == layer.leaf
    pattern = target.removesuffix(_leaf(target)) + leaf
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), layer.full_name) is not None


def _unsupported(thing: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        "unsupported_config_value",
        thing,
        found=found,
        expected=expected,
        next_step="Check the file; where a field changes nothing, add it in worker/adapters/mcore_config.py.",
    )
