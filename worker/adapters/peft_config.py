"""adapter_config.json as PEFT writes it: every field known, and either meant, without effect, or refused."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..checkpoints.hf_folder import read_json_object
from ..jobs.errors import BadInputError
from ..jobs.misreading import Misreading

ADAPTER_CONFIG = "adapter_config.json"
_ALL_LINEAR = "all-linear"

WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "corda_config",  # how A and B began
        "enable_lora",  # PEFT 0.2's, always null
        "eva_config",  # how A began
        "inference_mode",
        "lora_dropout",
        "lora_ga_config",  # how A and B began
        "loftq_config",  # how A and B began
        "megatron_core",  # a module's name; megatron_config says whether it is used
        "merge_weights",  # PEFT 0.2's: when to merge while it runs
        "peft_version",
        "qalora_group_size",  # use_qalora says whether it is used
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Fields that leave the merged weights as they are."""

UNMERGEABLE: dict[str, str] = {
    "alora_invocation_tokens": "activated LoRA acts after certain tokens only; no merged weight does that",
    "arrow_config": "Arrow routes each token to other adapters; no merged weight does that",
    "kasa_config": "KaSA cuts the base weight when training begins, and the adapter does not say how",
    "layer_replication": "the model that was trained repeats layers; it is not the base",
    "megatron_config": "it was trained on Megatron's parallel layers, whose tensors are named differently",
    "monteclora_config": "MonteCLoRA samples its factors",
    "trainable_token_indices": "single rows of the embedding are trained beside LoRA",
    "use_bdlora": "block-diagonal LoRA cuts its factors by rank of a tensor-parallel group",
    "use_qalora": "QALoRA adds to the zero points of a quantized base",
    "velora_config": "VeLoRA is not known to be plain LoRA at inference",
}
"""Fields that must be unset, with the reason."""

_MUTATING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of initialising that change the base weight; what is saved then adds to that changed base."""


class PeftConfig(BaseModel):
    """What of a LoraConfig decides what an adapter adds, under PEFT's names (0.17 to 0.21)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model_name_or_path: str | None = None
    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    fan_in_fan_out: bool = False
    lora_bias: bool = False
    bias: str = "none"
    target_modules: frozenset[str] | str | None = None
    exclude_modules: frozenset[str] | str | None = None
    target_parameters: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    ensure_weight_tying: bool = False

    @field_validator("rank_pattern", "alpha_pattern", mode="before")
    @classmethod
    def _no_pattern(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _expression(cls, value: frozenset[str] | str | None) -> frozenset[str] | str | None:
        _compiled([value] if isinstance(value, str) else ())
        return value

    @field_validator("rank_pattern", "alpha_pattern", "modules_to_save", "layers_pattern")
    @classmethod
    def _expressions[T: (dict[str, int], dict[str, float], tuple[str, ...] | str | None)](cls, value: T) -> T:
        _compiled([value] if isinstance(value, str) else value or ())
        return value

    def rank(self, module: str) -> int:
        """The rank of a module's factors."""
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """What B @ A is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha = self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (sqrt(rank) if self.use_rslora else rank)

    @property
    def targets_all_linear(self) -> bool:
        """Whether the targets are whatever is linear in the model, which PEFT looks up there."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == _ALL_LINEAR

    def leaves_out(self, module: str) -> bool:
        """Whether the module gets no factors, target or not."""
        return _matches(self.exclude_modules, module) or self._shuts_out(module)

    def targets(self, module: str) -> bool:
        """Whether PEFT gives the module factors by its name: its `check_target_module_exists`."""
        if self.leaves_out(module):
            return False
        if isinstance(self.target_modules, str):
            return _matches(self.target_modules, module)
        named = self.target_modules or ()
        return module in named or (_matches(self.target_modules, module) and self._in_layers(module))

    @property
    def choice(self) -> str:
        """The fields that say which modules have factors, as the config has them."""
        decide = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
        said = self.model_dump(mode="json", include=set(decide))
        values = {name: sorted(said[name]) if isinstance(said[name], list) else said[name] for name in decide}
        return ", ".join(
            f"{name} {_short(value)}" for name, value in values.items() if name == decide[0] or value not in (None, [])
        )

    def targets_parameter(self, parameter: str) -> bool:
        """Whether PEFT gives the parameter, by its whole name, factors of its own."""
        return any(parameter == name or parameter.endswith(f".{name}") for name in self.target_parameters or ())

    def saves(self, module: str) -> bool:
        """Whether the module, or one around it, is saved whole; PEFT asks for the name's end, be it `layernorm`'s."""
        pieces = module.split(".")
        around = [".".join(pieces[: depth + 1]) for depth in range(len(pieces))]
        return any(name.endswith(tuple(self.modules_to_save or ())) for name in around)

    def _shuts_out(self, module: str) -> bool:
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.modules_to_save or ())

    def _in_layers(self, module: str) -> bool:
        wanted = self.layers_to_transform
        if wanted is None or wanted == ():
            return True
        patterns = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
        expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns or () if pattern]
        found = (re.match(expression, module) for expression in expressions or [r".*?\.[^.]*\.(\d+)\."])
        layer = next((int(match[1]) for match in found if match), None)
        return layer is not None and layer in ((wanted,) if isinstance(wanted, int) else wanted)


def read_peft_config(folder: Path) -> PeftConfig:
    """An adapter folder's config. BadInputError where it is no LoRA, cannot be merged, or holds unknown fields."""
    path = folder / ADAPTER_CONFIG
    return parse_peft_config(read_json_object(path, "a PEFT adapter's config"), str(path))


def parse_peft_config(values: Mapping[str, Any], origin: str) -> PeftConfig:
    """The same, of values read from `origin`."""
    refused = _Refusals(origin)
    refused.other_type(values.get("peft_type"))
    for name, why in UNMERGEABLE.items():
        if values.get(name):
            refused.unmergeable(name, values[name], why)
    refused.mutated_base(values.get("init_lora_weights", True))
    passed = WITHOUT_EFFECT | UNMERGEABLE.keys() | {"peft_type", "init_lora_weights"}
    try:
        config = PeftConfig.model_validate({name: value for name, value in values.items() if name not in passed})
    except ValidationError as error:
        raise refused.malformed(error) from error
    refused.no_rank(config)
    return config


@dataclass(frozen=True, slots=True)
class _Refusals:
    origin: str

    def other_type(self, found: object) -> None:
        if found != "LORA":
            raise self._unsupported("peft_type", found, "LORA", "Merge it with the tool that made it.")

    def unmergeable(self, name: str, found: object, why: str) -> None:
        raise self._unsupported(name, found, f"none: {why}", "Such an adapter cannot be merged into this base.")

    def mutated_base(self, found: object) -> None:
        if isinstance(found, str) and found.lower().startswith(_MUTATING_INITS):
            raise self._unsupported(
                "init_lora_weights",
                found,
                "an adapter to the base itself: this one adds to a base that its initialisation changed",
                "Save it again with PEFT's `path_initial_model_for_weight_conversion`, which makes plain LoRA of it.",
            )

    def no_rank(self, config: PeftConfig) -> None:
        patterns = {f"rank_pattern.{key}": rank for key, rank in config.rank_pattern.items()}
        for name, rank in {"r": config.r, **patterns}.items():
            if rank <= 0:
                raise self._unsupported(name, rank, "a positive rank", "Check the adapter.")

    def malformed(self, error: ValidationError) -> BadInputError:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] != "extra_forbidden":
            read = Misreading.first_of(error, PeftConfig)
            return BadInputError(
                "bad_config",
                f"{self.origin}: {read.field}",
                found=read.found,
                expected=f"{read.expected}, as PEFT writes it",
                next_step="Check the file.",
            )
        return BadInputError(
            "unknown_config_field",
            f"{self.origin}: {name}",
            found=f"an unknown field with value {first.get('input')!r}",
            expected="fields of PEFT's LoraConfig up to 0.21",
            next_step="Where merging does not depend on it, add to WITHOUT_EFFECT in worker/adapters/peft_config.py.",
        )

    def _unsupported(self, name: str, found: object, expected: str, next_step: str) -> BadInputError:
        return BadInputError(
            "unsupported_config_value",
            f"{self.origin}: {name}",
            found=repr(found),
            expected=expected,
            next_step=next_step,
        )


def _pattern_key(patterns: Iterable[str], module: str) -> str:
    """PEFT's `get_pattern_key`: the first key that the module's name, or a dotted end of it, matches."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _compiled(expressions: Iterable[str]) -> None:
    """ValueError where one is no regular expression; PEFT reads all of these as such."""
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"a regular expression, while {expression!r} is no regular expression: {error}") from error


def _matches(wanted: frozenset[str] | str | None, module: str) -> bool:
    """The whole name of an expression; of names, the module's own or a dotted end of it."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    pieces = module.split(".")
    return bool(wanted) and any(".".join(pieces[start:]) in wanted for start in range(len(pieces)))


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
